"""Which step of a run each of the sampler's evaluations belongs to."""


class Steps:
    """Place: where in the schedule the noise level is, the number of its step and a share of the way to the next.

    Step: the sampler's own, since a step may evaluate at the level of the next one (Heun) or between (DPM-2). Core tells when a step
    has its first prediction, and how many follow in a step is learned from the step before. Where a sampler announces its steps
    otherwise (dpm_adaptive), and until the second is announced, the step is that of the noise level.
    """

    def __init__(self, sigmas):
        self.sigmas, self.count = sigmas, len(sigmas) - 1
        self.sigma, self.place, self.index = sigmas[0], -1.0, 0
        self.opens = True  # whether the evaluation is the first of its step
        self.level = 0  # the step of the noise level
        self.latest, self.since, self.each = None, 0, None  # announced step; evaluations since, and from there to the one before
        self.in_order = True

    def announced(self, step):
        self.in_order = self.in_order and step == self.level
        self.each = self.since if self.latest is not None else None
        self.latest, self.since = step, 0

    def evaluated(self, sigma):
        """The sampler's next evaluation is at this noise level."""
        place, index = self.place, self.index
        self.sigma, self.place = sigma, self.place_of(sigma)
        self.since += 1
        if self.in_order and self.each is not None:
            later = self.since >= self.each or self.place < place
            self.index = min(self.latest + later, self.count - 1)
        else:
            self.index = self.level
        self.opens = self.index != index or place < 0

    def place_of(self, sigma):
        """Where noise is added on the way, the next place of that level."""
        level, last = sigma * (1 - 1e-6), self.count - 1
        pairs = enumerate(zip(self.sigmas, self.sigmas[1:]))  # a step up holds its own level alone
        around = [step for step, (high, low) in pairs if high >= level > min(low, high * (1 - 2e-6))]
        around = around or [0 if level > self.sigmas[0] else last]
        self.level = next((step for step in around if step >= self.level), around[0])
        high, low = self.sigmas[self.level], self.sigmas[self.level + 1]
        return self.level + min(max((high - sigma) / (high - low), 0.0), 0.999) if high > low else float(self.level)
