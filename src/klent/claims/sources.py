"""Where the claims come from: five documents that docs/sources.md describes, and published work."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text whose statements are claims here; docs/sources.md says what it is, statement by statement."""

    title: str

    def at(self, place: str) -> str:
        """The document and where in it: ``Title (docs/sources.md), section 2.2``."""
        return f"{self}, {place}"

    def __str__(self) -> str:
        return f"{self.title} (docs/sources.md)"


WEIGHTED_CROSS_ENTROPY = Document("Weighted Cross-Entropy on the Simplex")
ENTROPY_ESSAY = Document("Entropy in Fine-Tuning and Reinforcement Learning")
REFERENCE_MODEL = Document("Rethinking the Reference Model in RLHF")
READING_NOTES = Document("Reading Notes on Reinforcement Learning without Labels")
OPTIMAL_SAMPLING = Document("Deriving the Optimal Sampling Distribution")

DOCUMENTS = (WEIGHTED_CROSS_ENTROPY, ENTROPY_ESSAY, REFERENCE_MODEL, READING_NOTES, OPTIMAL_SAMPLING)

SCHULMAN_KL = "Schulman, Approximating KL Divergence, 2020"
TANG_MUNOS = (
    "Tang and Munos, On a Few Pitfalls in KL Divergence Gradient Estimation for RL, 2025, arXiv:2506.09477"
)
LIU_KL = (
    "Liu et al., Rethinking KL Regularization in RLHF: From Value Estimation to Gradient Optimization, 2025, "
    "arXiv:2510.01555"
)
TRPO = "Schulman et al., Trust Region Policy Optimization, 2015, arXiv:1502.05477"
BISHOP = "Bishop, Pattern Recognition and Machine Learning, 2006"
DEEP_LEARNING = "Goodfellow, Bengio and Courville, Deep Learning, 2016"
Q_SFT = (
    "Hong, Dragan and Levine, Q-SFT: Q-Learning for Language Models via Supervised Fine-Tuning, 2024, "
    "arXiv:2411.05193"
)
DPO = (
    "Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward Model, 2023, "
    "arXiv:2305.18290"
)
PPL = "Cho et al., Policy-labeled Preference Learning: Is Preference Enough for RLHF?, 2025, arXiv:2505.06273"
ENTROPY_MECHANISM = (
    "Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025, "
    "arXiv:2505.22617"
)
STEER = (
    "Hao et al., Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective (STEER), 2025, "
    "arXiv:2510.10150"
)
EIGHTY_TWENTY = (
    "Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning "
    "for LLM Reasoning, 2025, arXiv:2506.01939"
)
RAZOR = (
    "Shenfeld, Pari and Agrawal, RL's Razor: Why Online Reinforcement Learning Forgets Less, 2025, "
    "arXiv:2509.04259"
)
BEYOND_BASE = (
    "Yue et al., Does Reinforcement Learning Really Incentivize Reasoning Capacity in LLMs Beyond the Base "
    "Model?, 2025, arXiv:2504.13837"
)
RETAINING = (
    "Chen et al., Retaining by Doing: The Role of On-Policy Data in Mitigating Forgetting, 2025, "
    "arXiv:2510.18874"
)
EMPO = (
    "Zhang et al., Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning "
    "Incentivization (EMPO), 2025, arXiv:2504.05812"
)
ONE_SHOT_EM = "Gao et al., One-shot Entropy Minimization, 2025, arXiv:2505.20282"
CHERNOFF = "Nielsen, An Information-Geometric Characterization of Chernoff Information, 2013"
INFORMATION_GEOMETRY = "Amari and Nagaoka, Methods of Information Geometry, 2000"
COMEDY = (
    "Shah et al., A Comedy of Estimators: On KL Regularization in RL Training of LLMs, 2025, arXiv:2512.21852"
)
AMINI_KL = (
    "Amini, Vieira and Cotterell, Better Estimation of the KL Divergence Between Language Models, 2025, "
    "arXiv:2504.10637"
)
DPPO = "Qi et al., Rethinking the Trust Region in LLM Reinforcement Learning, 2026, arXiv:2602.04879"
ENTROCRAFT = (
    "Li et al., Addressing Performance Saturation for LLM RL via Precise Entropy Curve Control, 2026, "
    "arXiv:2604.26326"
)
