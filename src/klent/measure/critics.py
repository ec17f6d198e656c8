"""What a critic's values are worth: how much of the returns they explain, before the step's update."""

from klent.streams.batch import Batch


def critic_metrics(batch: Batch) -> dict[str, float]:
    """``value/mean`` and ``value/explained`` over the step's tokens; empty without a critic.

    Completions that could not be scored have no return and are left out. Where all returns are equal there is
    nothing to explain, and ``value/explained`` is absent.
    """
    values, returns, reward = batch.streams.value_old, batch.streams.returns, batch.reward
    if values is None or returns is None or reward is None:
        return {}
    known = batch.mask & ~reward.isnan()[:, None]
    if not known.any():
        return {}
    value, target = values[known].double(), returns[known].double()
    row = {"value/mean": float(value.mean())}
    spread = float(target.var(correction=0))
    if spread > 1e-12 * float(target.square().mean()):
        row["value/explained"] = 1.0 - float((target - value).var(correction=0)) / spread
    return row
