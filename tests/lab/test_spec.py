import math
from pathlib import Path

import pytest

import tt_jax
from tt_jax.cache import NAMES
from tt_jax.lab import spec
from tt_jax.shapes.world import REGIMES

FILE = """
batch = 2
against = ["plain"]

[arms.plain]
retries = 0

[arms.sweep]
p = [0.1, 0.2]
lam = [1.0, 2]
resample_noise = true

[stress.hurt]
dtype = "bfloat16"
plant = { second = 2, rows = [0], columns = [0, 1], strength = 3.0 }

[[studies]]
name = "one"
prompts = 4
seconds = 3
hosts = ["self-forcing", "rolling-forcing"]
arms = ["plain", "sweep"]
stress = ["clean", "hurt"]
seeds = [0, 7]
"""


@pytest.fixture
def read(tmp_path):
    """Reads the file above with some text replaced."""

    def call(old="", new="", more=""):
        assert old in FILE
        path = tmp_path / "it.toml"
        path.write_text(FILE.replace(old, new, 1) + more)
        return spec.read(path)

    return call


def test_a_grid(read):
    experiment = read()
    (study,) = experiment.studies
    assert experiment.hours == math.inf and experiment.against == ("plain",)
    names = ["plain", "sweep 0.1, 1.0", "sweep 0.1, 2", "sweep 0.2, 1.0", "sweep 0.2, 2"]
    assert [arm.name for arm in study.arms] == names
    assert study.arms[0].trim == tt_jax.TokenTrim.off()
    assert study.arms[3].trim == tt_jax.TokenTrim(p=0.2, lam=1.0, resample_noise=True)
    clean, hurt = study.stress
    assert clean == spec.Stress("clean", "shapes")
    assert hurt.plant == spec.Plant(2, (0,), (0, 1), 3.0) and hurt.dtype == "bfloat16"
    assert [prompt.regime for prompt in study.prompts] == list(REGIMES)
    cells = experiment.cells
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2 * 5
    # What is compared comes together: all arms of a batch before the next batch.
    assert [cell.arm.name for cell in cells[:5]] == names
    assert {cell.first for cell in cells[:40]} == {0} and {c.first for c in cells[40:]} == {2}
    assert cells[40].prompts == study.prompts[2:]


def test_studies_share_cells_and_fewer_prompts_are_the_first(read):
    other = """
[[studies]]
name = "two"
prompts = 2
seconds = 3.0
hosts = ["self-forcing"]
arms = ["plain"]
"""
    experiment = read(more=other)
    assert len(experiment.studies[1].cells()) == 1
    assert len(experiment.cells) == 80
    longer = read("prompts = 4", "prompts = 8").studies[0].prompts
    assert longer[:4] == experiment.studies[0].prompts


def test_prompts_of_ones_own(read):
    (study,) = read("prompts = 4", 'prompts = ["a cat", "a dog"]').studies
    assert study.prompts == (spec.Prompt("a cat", ""), spec.Prompt("a dog", ""))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("batch = 2", "batch = 2\nbach = 3", "the file has no setting 'bach', only model,"),
        ("retries = 0", "retry = 0", "arm 'plain' has no setting 'retry', only p,"),
        ("dtype =", "type =", "stress 'hurt' has no setting 'type'"),
        ("second =", "seconds =", "the plant of stress 'hurt' has no setting 'seconds'"),
        ("seeds =", "seed =", "study 'one' has no setting 'seed'"),
        ('name = "one"', "", "study None lacks the setting 'name'"),
        ("batch = 2", "", "the file lacks the setting 'batch'"),
        (", strength = 3.0", "", "the plant of stress 'hurt' lacks the setting 'strength'"),
        ("batch = 2", "batch = 0", "'batch' of the file must be a whole number from 1, not 0"),
        ("batch = 2", "batch = true", "'batch' of the file must be a whole number"),
        ("batch = 2", "batch = 2\nhours = nan", "'hours' of the file must be a number above 0"),
        ("[0, 7]", "[0, 0]", "'seeds' of study 'one' must be a list of different whole numbers"),
        ("[0, 7]", "[0, -1]", "different whole numbers from 0 to 2**24 - 1, not [0, -1]"),
        ("[0, 7]", "[]", "'seeds' of study 'one' must be"),
        ('"bfloat16"', '"half"', 'must be "float32" or "bfloat16", not \'half\''),
        ("rows = [0]", "rows = [-1]", "'rows' of the plant of stress 'hurt' must be"),
        ("p = [0.1, 0.2]", "p = [0.1, 2.0]", "arm 'sweep': p is the share of tokens to drop"),
        ("p = [0.1, 0.2]", 'p = "much"', "'p' of arm 'sweep' must be a finite number"),
        ("retries = 0", 'select = "none"', "arm 'plain': select=\"none\" drops nothing"),
        ("retries = 0", "", "arms that draw fresh noise with arms that don't"),
        ('"rolling-forcing"]', '"rolling"]', "study 'one': there is no host 'rolling', only"),
        ('"sweep"]', '"sweeps"]', "study 'one': there is no arm 'sweeps', only plain, sweep"),
        ('"hurt"]', '"pain"]', "study 'one': there is no stress 'pain', only clean, hurt"),
        ('["plain"]', '["plane"]', "against: there is no arm 'plane'"),
        ("prompts = 4", "prompts = 3", "3 prompts don't fill batches of 2"),
        ("prompts = 4", "prompts = 300", "1 to 256 prompts are possible, not 300"),
        ("prompts = 4", 'prompts = ["a", " "]', "the prompt is empty"),
        ("prompts = 4", 'prompts = ["a", "a"]', "a count, or a list of different texts"),
        ("[stress.hurt]", "[stress.clean]", "stress 'clean' is the one without any"),
        ("seconds = 3", "seconds = 0.01", "seconds for at least one frame"),
        ("seconds = 3", "seconds = 2.9", "study 'one': videos of less than 3 seconds can't be"),
        ("retries = 0", 'cache = "deep"', "arm 'plain': there is no cache policy 'deep'"),
        ("retries = 0", 'cache = "mem-rope:sinks=1"', "mem-rope has no setting 'sinks'"),
        ("retries = 0", "cache = 3", "'cache' of arm 'plain' must be a text, not 3"),
        ("seeds =", "batch = 3\nseeds =", "4 prompts don't fill batches of 3"),
        ("batch = 2", "batch =", "is no TOML file"),
    ],
)
def test_a_bad_file_is_one_sentence(read, old, new, problem):
    with pytest.raises(ValueError) as error:
        read(old, new)
    assert problem in str(error.value)
    assert "it.toml" in str(error.value) and "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.toml\."):
        spec.read(tmp_path / "none.toml")


def test_arms_of_cache_policies_and_a_batch_of_a_studys_own(read):
    more = 'resample_noise = true\ncache = ["window", "mem-rope:sink=2"]'
    arms = read("resample_noise = true", more).studies[0].arms
    assert [(arm.name, arm.cache) for arm in arms[:3]] == [
        ("plain", None),
        ("sweep 0.1, 1.0, window", "window"),
        ("sweep 0.1, 1.0, mem-rope:sink=2", "mem-rope:sink=2"),
    ]
    assert len(arms) == 9 and arms[1].trim == arms[2].trim
    assert len(read("seeds =", "batch = 4\nseeds =").cells) == len(read().cells) / 2


@pytest.mark.parametrize("name", ["smoke", "shapes", "full", "caches", "caches_gpu"])
def test_the_committed_experiments_can_be_read(name):
    experiment = spec.read(Path(spec.__file__).parent / "experiments" / f"{name}.toml")
    assert experiment.cells
    for study in experiment.studies:
        assert study.arms[0].name in ("plain", "plain window")


def test_the_experiment_on_caches_has_every_policy_with_and_without_tokentrim():
    experiment = spec.read(Path(spec.__file__).parent / "experiments" / "caches.toml")
    for study in experiment.studies:
        for retries in (0, 1):
            arms = [arm.cache for arm in study.arms if arm.trim.retries == retries]
            assert arms == list(NAMES)
    sizes = [(len(study.prompts), study.batch, study.seconds) for study in experiment.studies]
    assert sizes == [(16, 16, 60), (2, 2, 240)] and experiment.hours == 4


def test_the_core_experiment_is_the_one_that_was_planned():
    experiment = spec.read(Path(spec.__file__).parent / "experiments" / "shapes.toml")
    drift, planted, _, long = experiment.studies
    for study, size in ((drift, (32, 60)), (long, (4, 240))):
        assert (len(study.prompts), study.seconds) == size
        assert study.hosts == ("self-forcing", "rolling-forcing")
        assert [arm.trim.select for arm in study.arms[1:]] == ["top", "none", "random"]
        assert all((arm.trim.p, arm.trim.lam) == (0.1, 2.0) for arm in study.arms)
        assert {stress.model for stress in study.stress} == {"shapes-young"}
    assert {stress.model for stress in planted.stress} == {"shapes"}
    assert len(planted.prompts) == 24 and experiment.hours <= 4
