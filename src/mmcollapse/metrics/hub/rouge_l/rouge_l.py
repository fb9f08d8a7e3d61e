from mmcollapse.metrics import captions, hub


class RougeL(hub.AgainstReferences):
    """ROUGE-L: see `mmcollapse.metrics.captions.rouge_l`."""

    def _compute(self, predictions, references):
        return {"rouge_l": captions.rouge_l(predictions, references)}
