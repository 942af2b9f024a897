"""Adversaries: perturbation sets, attacks on a function, and evaluation that does not believe the attack.

An attack maximizes any function of one input; `attack_batch` runs it on many, `evaluate` grades it on a network.
"""

from ntk_robust.attacks._apgd import APGD
from ntk_robust.attacks._attack import AbstractAttack, AttackResult, Identity
from ntk_robust.attacks._audit import Audit, Finding
from ntk_robust.attacks._auto_attack import AutoAttackResult, auto_attack
from ntk_robust.attacks._batch import attack_batch
from ntk_robust.attacks._carlini_wagner import CarliniWagner
from ntk_robust.attacks._controls import ControlRuns, Controls
from ntk_robust.attacks._deep_fool import DeepFool
from ntk_robust.attacks._evaluate import Evaluation, evaluate
from ntk_robust.attacks._fab import FAB
from ntk_robust.attacks._fgsm import FGSM
from ntk_robust.attacks._l1 import L1Ball
from ntk_robust.attacks._l2 import L2Ball
from ntk_robust.attacks._minimum_radius import MinimumRadius, minimum_radius
from ntk_robust.attacks._pgd import PGD
from ntk_robust.attacks._restarts import Restarts
from ntk_robust.attacks._sets import AbstractPerturbationSet, Box, LinfBall
from ntk_robust.attacks._sphere import SphereSlice
from ntk_robust.attacks._square import Square
from ntk_robust.attacks._transfer import Transfer, transfer

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "AbstractAttack",
    "AbstractPerturbationSet",
    "AttackResult",
    "Audit",
    "AutoAttackResult",
    "Box",
    "CarliniWagner",
    "ControlRuns",
    "Controls",
    "DeepFool",
    "Evaluation",
    "Finding",
    "Identity",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "MinimumRadius",
    "Restarts",
    "SphereSlice",
    "Square",
    "Transfer",
    "attack_batch",
    "auto_attack",
    "evaluate",
    "minimum_radius",
    "transfer",
]
