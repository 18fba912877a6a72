"""What can go wrong with a model or a run; each message is one sentence that says what to do."""


class ModelError(ValueError):
    """A model's folder that can't be used; the message says why and what to do."""


class NonFiniteError(ArithmeticError):
    """A chunk came out with NaN or infinite latents; `chunk` is its number, from 0."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        super().__init__(f"the latents of chunk {chunk + 1} aren't finite: the run stops there.")
