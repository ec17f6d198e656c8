"""Metrics of losses on noised images."""

from klent.report.terms.term import Term

NOISING: dict[str, Term] = {
    "denoising/loss": Term(
        "nats per step",
        "Loss of denoising the policy's own images, noised again (`diffusion_nft`); mean over images and log-SNRs.",
        "How far one image is from the mean of all that could have been noised to the same: it falls as images "
        "become alike, and never to 0 before.",
    ),
    "denoising/kl": Term(
        "nats per step",
        "KL of the policy's step there from that of the policy at the start of the update (`diffusion_nft`).",
        "0 with one optimizer step per step. The loss charges advantage_max times beta for each nat.",
    ),
    "denoising/data": Term(
        "nats per step",
        "Loss of denoising the images of task.images (`denoising`).",
        "Times the steps, KL(data ‖ policy) of noised paths up to a constant: its rise since step 1 is what the "
        "policy has forgotten of the data.",
    ),
}
"""Metrics of noised images -> Term."""
