"""Metrics of losses on noised images."""

from klent.report.terms.term import Term

NOISING: dict[str, Term] = {
    "denoising/loss": Term(
        "nats per step",
        "`diffusion_nft`: loss of denoising the policy's own images, noised again; mean over images and log-SNRs.",
        "How far one image is from the mean of all that could have been noised to the same: it falls as images "
        "become alike, and never to 0 before.",
    ),
    "denoising/kl": Term(
        "nats per step",
        "`diffusion_nft`: KL of the policy's step there from that of the policy at the start of the update.",
        "0 with one optimizer step per step. The loss charges advantage_max times beta for each nat.",
    ),
    "denoising/data": Term(
        "nats per step",
        "`denoising`: loss of denoising images of task.images.",
        "Times the steps, KL(data ‖ policy) of noised paths up to a constant: its rise since step 1 is what the "
        "policy has forgotten of the data.",
    ),
}
"""Metrics of noised images -> Term."""
