from mmcollapse.metrics import captions, hub


class Distinct(hub.OfTheSet):
    """Shares of distinct words and of distinct pairs of words: see `mmcollapse.metrics.captions.distinct`."""

    def _compute(self, predictions):
        return {f"distinct_{n}": captions.distinct(predictions, n) for n in (1, 2)}
