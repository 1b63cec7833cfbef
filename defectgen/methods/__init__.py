"""The methods, each a file that reads as its paper. Imported only when asked for: they need torch."""

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defectgen.methods.base import Method


class MethodName(str, Enum):
    """The names of the methods, as on the command line."""

    DT_GAN = "dt-gan"
    DCDGANC = "dcdganc"
    ISU_GAN = "isu-gan"
    DEFECT_GAN = "defect-gan"
    DFMGAN = "dfmgan"


def get(name: MethodName) -> "type[Method]":
    """The class of a method; mypy proves here that each one fits the protocol."""
    match name:
        case MethodName.DT_GAN:
            from defectgen.methods.dt_gan import DTGAN

            return DTGAN
        case MethodName.DCDGANC:
            from defectgen.methods.dcdganc import DCDGANc

            return DCDGANc
        case MethodName.ISU_GAN:
            from defectgen.methods.isu_gan import ISUGAN

            return ISUGAN
        case MethodName.DEFECT_GAN:
            from defectgen.methods.defect_gan import DefectGAN

            return DefectGAN
        case MethodName.DFMGAN:
            from defectgen.methods.dfmgan import DFMGAN

            return DFMGAN
