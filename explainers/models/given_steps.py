"""The preprocessing that a job states in its ``[model]`` table, in place of the source's own."""

from __future__ import annotations

from dataclasses import replace

from explainers.models.model_spec import ModelSpec, Preprocessing, Side


def with_given_steps(steps: Preprocessing, spec: ModelSpec) -> Preprocessing:
    """Return the source's preprocessing with the job's values in place of its own.

    Raises
    ------
    ValueError
        In one line that begins with the key: the values contradict each other, or the crop is larger than the
        resized image.
    """
    steps = _resized(_in_channels(steps, spec), spec)
    given = {key: getattr(spec, key) for key in ("crop", "mean", "std")}
    steps = replace(steps, **{key: value for key, value in given.items() if value is not None})
    if spec.resize is not None or spec.crop is not None:
        _check_crop(steps)
    return steps


def _in_channels(steps: Preprocessing, spec: ModelSpec) -> Preprocessing:
    """Take another number of channels than the source's, if the job says so."""
    channels = spec.given_channels or steps.channels
    if channels == steps.channels:
        return steps
    plain = Preprocessing()
    if steps.mean != plain.mean or steps.std != plain.std:
        for key in ("mean", "std"):
            if getattr(spec, key) is None:
                raise ValueError(
                    f"model.{key}: {spec.name} states it for {steps.channels} channels, and inputs have "
                    f"{channels}; give {channels} numbers"
                )
    return replace(steps, mean=(0.0,) * channels, std=(1.0,) * channels, fill=(0,) * channels)


def _resized(steps: Preprocessing, spec: ModelSpec) -> Preprocessing:
    """Replace how images are resized, if the job says so; the input then has the size it says."""
    if spec.resize is None:
        if spec.fit is not None:
            raise ValueError("model.fit: it says how an image gets the size resize; give resize as well")
        if spec.crop is not None and steps.fit != "short":
            raise ValueError(
                f"model.crop: {spec.name} has inputs of {_by(steps.crop)} pixels, and a crop alone would "
                "change how its images are resized; give resize, the length of the short side, as well"
            )
        return steps
    fit = spec.fit or ("short" if isinstance(spec.resize, int) else "squash")
    steps = replace(steps, resize=spec.resize, fit=fit, fill=(0,) * steps.channels)
    if fit != "short":  # the size is that of the whole input, whatever the source cuts from its own
        return replace(steps, crop=spec.resize)
    if not isinstance(spec.resize, int):
        raise ValueError(
            f"model.resize: {_by(spec.resize)} is not the length of one side, as fit = short needs it; give "
            "a number, or fit = squash, cover or contain"
        )
    return steps


def _check_crop(steps: Preprocessing) -> None:
    """Raise ValueError if the crop is larger than what it is cut from."""
    if steps.size is None or steps.resize is None:
        return
    whole = (steps.resize, steps.resize) if isinstance(steps.resize, int) else steps.resize
    if any(cut > side for cut, side in zip(steps.size, whole, strict=True)):
        raise ValueError(
            f"model.crop: {_by(steps.crop)} pixels do not fit into model.resize = {_by(steps.resize)}"
        )


def _by(side: Side | None) -> str:
    """A size in words: 224, or 224x112, height first."""
    return "x".join(map(str, side)) if isinstance(side, tuple) else str(side)
