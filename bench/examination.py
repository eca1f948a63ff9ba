"""A bundled model examined: are captions drawn right, and is the set of pictures as good?"""

import random
import statistics


class Examination:
    """One bundled model drawing the same captions with the same seeds again and again, read by the judge.

    ``count`` captions, a multiple of ``batch``, which are sampled at once.
    """

    def __init__(self, name, count, batch=20, steps=20):
        import torch
        from comfyui_distillery.measure.judge import load_judge

        from tools import shapes
        from tools.check_demo import Bundled

        self.judge, self.bundled, self.batch, self.steps = load_judge(), Bundled(name), batch, steps
        rng = random.Random("guidance")
        self.scenes = [shapes.random_scene(rng) for _ in range(count)]
        self.captions = [shapes.caption(scene, rng, full=True) for scene in self.scenes]
        fresh = [shapes.draw([shapes.random_scene(rng) for _ in range(batch)]) for _ in range(2 * count // batch)]
        self.fresh = self.judge.features(torch.cat(fresh).movedim(1, -1))

    def draw(self, model, scale, first):
        """One batch of pictures (B, 128, 128, 3) in [0, 1], of the captions from ``first`` on; the seed is ``first``."""
        return self.bundled.pictures(self.captions[first : first + self.batch], first, self.steps, scale, model)

    def sit(self, model, scale, saved=lambda: 0.0):
        """({"saved", "right", "FID", "KID"} of this model's pictures, whether each is right); saved() tells which share of the work
        was spared in the run just made.
        """
        import torch
        from comfyui_distillery.measure.distribution import fid, kid

        from tools.train_judge import right

        rights, features, shares = [], [], []
        with torch.inference_mode():
            for i in range(0, len(self.captions), self.batch):
                pictures = self.draw(model, scale, i)
                shares.append(saved())
                rights += [right(scene, read) for scene, read in zip(self.scenes[i:], self.judge.read(pictures))]
                features.append(self.judge.features(pictures))
        features = torch.cat(features)
        far = {"FID": fid(self.fresh, features), "KID": kid(self.fresh, features)}
        return {"saved": statistics.mean(shares), "right": statistics.mean(rights), **far}, rights


def compared(labels, found, full):
    """A row: labels and figures of what ``sit`` found, beside what it found with nothing left out.

    lost: points of ``right`` below that; low and high: a standard error of it, picture by picture, to each side.
    """
    (figures, rights), (_, wanted) = found, full
    changes = [100 * (before - after) for before, after in zip(wanted, rights)]
    lost, error = statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    return {**labels, **figures, "lost": lost, "low": lost - error, "high": lost + error}
