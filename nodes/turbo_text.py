"""What the turbo nodes say: which profile was chosen and why, where it is from, and what contradicts it."""


def chosen(choice, sigmas, denoise=1.0, notes=()):
    """Of a Choice and the SIGMAS that came of it, a fact a line. notes: further lines."""
    profile, taken = choice.profile, len(sigmas) - 1
    share = f" At denoise {denoise:g}, {steps(taken)}." if denoise < 1 else ""
    lines = [
        f"{profile.title} in {steps(choice.steps)}: {choice.why}.{share}",
        f"Sampler {profile.sampler}{_knobs(profile.knobs)}. Noise levels {listed(sigmas)}.",
        _guidance(profile),
        *notes,
        profile.note,
        f"Source: {', '.join(profile.sources)}. Licence: {profile.licence.rstrip('.')}.",
    ]
    if profile.unconfirmed:
        lines.append(f"Not confirmed by any source at hand: {', '.join(profile.unconfirmed)}.")
    return "\n".join(line for line in lines if line)


def found(problems):
    """Of what ``check.problems`` found, a problem a line."""
    if not problems:
        return "Nothing contradicts the profile."
    return "\n".join(f"{problem.severity.capitalize()}: {problem.text} {problem.remedy}" for problem in problems)


def steps(count):
    return "1 step" if count == 1 else f"{count} steps"


def counts(numbers):
    """4 -> 4 steps; 1, 2, 4 -> 1, 2 or 4 steps; 1 to 50 -> 1 to 50 steps."""
    *first, last = sorted(numbers)
    if not first:
        return steps(last)
    if len(first) > 8 and last - first[0] == len(first):
        return f"{first[0]} to {last} steps"
    return f"{', '.join(map(str, first))} or {last} steps"


def listed(sigmas):
    return ", ".join(f"{sigma:.4g}" for sigma in sigmas.tolist())


def _knobs(knobs):
    return f" ({', '.join(f'{name} {value}' for name, value in knobs.items())})" if knobs else ""


def _guidance(profile):
    low, high = profile.cfg_range
    bears = f", {low:g} to {high:g} are possible" if high > low else ""
    negative = "a negative prompt has no effect"
    if profile.negative:
        negative = "a negative prompt is used" if profile.cfg > 1 else "a negative prompt has an effect only above 1"
    embedded = f" Embedded guidance {profile.guidance:g}: FluxGuidance on the positive prompt." if profile.guidance is not None else ""
    return f"CFG {profile.cfg:g}{bears}; {negative}.{embedded}"
