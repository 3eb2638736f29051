"""Cut a network at one layer into backbone (inputs -> activations) and head (activations -> logits)."""

from explainers.models.cutting.choosing import Cut, Way, cut

__all__ = ["Cut", "Way", "cut"]
