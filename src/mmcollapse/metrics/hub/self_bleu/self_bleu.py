from mmcollapse.metrics import captions, hub


class SelfBleu(hub.OfTheSet):
    """Self-BLEU-4 of the first 200 captions: see `mmcollapse.metrics.captions.self_bleu`."""

    def _compute(self, predictions):
        return {"self_bleu": captions.self_bleu(predictions)}
