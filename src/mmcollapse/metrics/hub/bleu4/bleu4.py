from mmcollapse.metrics import captions, hub


class Bleu4(hub.AgainstReferences):
    """Corpus BLEU-4: see `mmcollapse.metrics.captions.bleu4`."""

    def _compute(self, predictions, references):
        return {"bleu4": captions.bleu4(predictions, references)}
