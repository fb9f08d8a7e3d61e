from mmcollapse.metrics import captions, hub


class Vocabulary(hub.OfTheSet):
    """Number of distinct words: see `mmcollapse.metrics.captions.vocabulary`."""

    def _compute(self, predictions):
        return {"vocabulary": captions.vocabulary(predictions)}
