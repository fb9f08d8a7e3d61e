from mmcollapse.metrics import captions, hub


class Cider(hub.AgainstReferences):
    """CIDEr-D: see `mmcollapse.metrics.captions.cider`."""

    def _compute(self, predictions, references):
        return {"cider": captions.cider(predictions, references)}
