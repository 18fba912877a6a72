// The severity curve against its threshold, on a logarithmic scale, with a line at each new prompt.

const MARGIN = { left: 34, right: 12, top: 20, bottom: 20 };

export class Curve {
  constructor(canvas, colour) {
    Object.assign(this, { canvas, colour, rows: [], parents: [] });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  clear() {
    this.rows = [];
    this.parents = [];
    this.draw();
  }

  add(row) {
    this.rows.push(row);
    this.draw();
  }

  // From here on another video is told, beside which this one stays in grey.
  branch() {
    this.parents = this.rows;
    this.rows = this.rows.map((row) => ({ ...row }));
    if (this.rows.length) this.rows.at(-1).branch = true;
  }

  describe() {
    const row = this.rows.at(-1);
    if (!row) return "No chunk measured yet";
    const told = (value) => (value === null ? "not known yet" : value.toFixed(2));
    const acted = this.rows.filter((row) => row.acted).length;
    const prompts = this.rows.filter((row) => row.prompt).map((row) => `${row.start.toFixed(1)} s`);
    return `Severity at ${row.end.toFixed(1)} seconds: ${told(row.severity)}, threshold `
      + `${told(row.threshold)}; ${acted} interventions`
      + (prompts.length ? `; new prompts at ${prompts.join(", ")}` : "");
  }

  draw() {
    const { canvas, rows } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    canvas.setAttribute("aria-label", this.describe());
    const values = rows.flatMap((row) => [row.severity, row.threshold]).filter((value) => value > 0);
    const low = Math.log(Math.min(0.5, ...values.slice(-4000)) * 0.9);
    const high = Math.log(Math.max(2, ...values.slice(-4000)) * 1.15);
    const end = Math.max(15, rows.at(-1)?.end ?? 0);
    const x = (seconds) => MARGIN.left + (seconds / end) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => MARGIN.top
      + ((high - Math.log(value)) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const [ink, faint, line] = ["--ink", "--faint", "--line"].map(this.colour);

    context.lineWidth = 1;
    context.fillStyle = faint;
    context.strokeStyle = line;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const marks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100];
    for (const value of marks) {
      if (Math.log(value) < low || Math.log(value) > high) continue;
      this.#path(context, [[MARGIN.left, y(value)], [width - MARGIN.right, y(value)]]);
      context.fillText(String(value), MARGIN.left - 7, y(value));
    }
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    const steps = [5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];
    const step = steps.find((step) => (end / step) * 70 < width - MARGIN.left) ?? 604800;
    for (let at = 0; at <= end; at += step) context.fillText(clock(at), x(at), height - 4);

    const lines = rows.filter((row) => row.prompt || row.branch).flatMap((row) => [
      ...(row.prompt ? [{ at: x(row.start), text: row.prompt, dash: [] }] : []),
      ...(row.branch ? [{ at: x(row.end), text: "branch", dash: [2, 3] }] : []),
    ]);
    context.strokeStyle = context.fillStyle = ink;
    lines.forEach(({ at, text, dash }, i) => {
      context.setLineDash(dash);
      this.#path(context, [[at, MARGIN.top - 6], [at, height - MARGIN.bottom]]);
      const before = at - (lines[i - 1]?.at ?? MARGIN.left);
      const behind = (lines[i + 1]?.at ?? width) - at;
      // Beside its line, on the right if it fits there or the left is no better.
      const left = context.measureText(text).width > behind - 12 && i === lines.length - 1
        && before > 2 * behind && (i === 0 || before > 240);
      context.textAlign = left ? "right" : "left";
      context.fillText(fit(context, text, left ? before / (i ? 2 : 1) : behind - 12), at + (left ? -5 : 5), 11);
    });

    const points = (all, name) => all.filter((row) => row[name] > 0)
      .map((row) => [x((row.start + row.end) / 2), y(row[name])]);
    context.lineJoin = "round";
    context.setLineDash([]);
    context.lineWidth = 1.5;
    context.strokeStyle = line;
    this.#path(context, points(this.parents.filter((row) => row.end <= end), "severity"));
    context.setLineDash([5, 4]);
    context.strokeStyle = faint;
    this.#path(context, points(rows, "threshold"));
    context.setLineDash([]);
    context.lineWidth = 2;
    context.strokeStyle = this.colour("--accent");
    this.#path(context, points(rows, "severity"));
    context.fillStyle = this.colour("--warn");
    for (const row of rows) {
      if (!row.acted || !(row.severity > 0)) continue;
      context.beginPath();
      context.arc(x((row.start + row.end) / 2), y(row.severity), 4, 0, 7);
      context.fill();
    }
  }

  #path(context, points) {
    context.beginPath();
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }
}

function fit(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let short = text;
  while (short && context.measureText(`${short} …`).width > width) short = short.slice(0, -1);
  return short.trim() ? `${short.trim()} …` : "";
}

function clock(seconds) {
  if (seconds < 60) return `${seconds} s`;
  const [minutes, rest] = [Math.floor(seconds / 60), String(Math.floor(seconds % 60)).padStart(2, "0")];
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}
