"""What a methods paragraph may cite, as BibTeX."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

_ENTRIES = {
    "roy2025": r"""@misc{roy2025,
  author = {Roy, Dip},
  title = {Mechanistic Interpretability of Diffusion Models: Circuit-Level Analysis and Causal Validation},
  year = {2025},
  note = {arXiv:2506.17237},
}""",
    "song2021": r"""@inproceedings{song2021,
  author = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  title = {Denoising Diffusion Implicit Models},
  booktitle = {International Conference on Learning Representations},
  year = {2021},
  note = {arXiv:2010.02502},
}""",
    "lipman2023": r"""@inproceedings{lipman2023,
  author = {Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt},
  title = {Flow Matching for Generative Modeling},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  note = {arXiv:2210.02747},
}""",
    "ho2022": r"""@misc{ho2022,
  author = {Ho, Jonathan and Salimans, Tim},
  title = {Classifier-Free Diffusion Guidance},
  year = {2022},
  note = {arXiv:2207.12598},
}""",
    "huang2007": r"""@techreport{huang2007,
  author = {Huang, Gary B. and Ramesh, Manu and Berg, Tamara and Learned-Miller, Erik},
  title = {Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained Environments},
  institution = {University of Massachusetts, Amherst},
  number = {07-49},
  year = {2007},
}""",
    "liu2015": r"""@inproceedings{liu2015,
  author = {Liu, Ziwei and Luo, Ping and Wang, Xiaogang and Tang, Xiaoou},
  title = {Deep Learning Face Attributes in the Wild},
  booktitle = {IEEE International Conference on Computer Vision},
  year = {2015},
}""",
    "niu2024": r"""@misc{niu2024,
  author = {Niu, Ziang and Ray Choudhury, Jyotishka and Katsevich, Eugene},
  title = {The conditional saddlepoint approximation for fast and accurate large-scale hypothesis testing},
  year = {2024},
  note = {arXiv:2407.08911},
}""",
    "obrien1979": r"""@article{obrien1979,
  author = {O'Brien, Peter C. and Fleming, Thomas R.},
  title = {A Multiple Testing Procedure for Clinical Trials},
  journal = {Biometrics},
  volume = {35},
  year = {1979},
}""",
    "jennison1989": r"""@article{jennison1989,
  author = {Jennison, Christopher and Turnbull, Bruce W.},
  title = {Interim Analyses: The Repeated Confidence Interval Approach},
  journal = {Journal of the Royal Statistical Society, Series B},
  volume = {51},
  year = {1989},
}""",
    "benjamini1995": r"""@article{benjamini1995,
  author = {Benjamini, Yoav and Hochberg, Yosef},
  title = {Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing},
  journal = {Journal of the Royal Statistical Society, Series B},
  volume = {57},
  year = {1995},
}""",
    "benjamini2001": r"""@article{benjamini2001,
  author = {Benjamini, Yoav and Yekutieli, Daniel},
  title = {The Control of the False Discovery Rate in Multiple Testing under Dependency},
  journal = {The Annals of Statistics},
  volume = {29},
  year = {2001},
}""",
    "benjamini2014": r"""@article{benjamini2014,
  author = {Benjamini, Yoav and Bogomolov, Marina},
  title = {Selective Inference on Multiple Families of Hypotheses},
  journal = {Journal of the Royal Statistical Society, Series B},
  volume = {76},
  year = {2014},
}""",
    "simes1986": r"""@article{simes1986,
  author = {Simes, R. J.},
  title = {An Improved {B}onferroni Procedure for Multiple Tests of Significance},
  journal = {Biometrika},
  volume = {73},
  year = {1986},
}""",
    "wang2022": r"""@article{wang2022,
  author = {Wang, Ruodu and Ramdas, Aaditya},
  title = {False Discovery Rate Control with E-values},
  journal = {Journal of the Royal Statistical Society, Series B},
  volume = {84},
  year = {2022},
}""",
    "waudbysmith2024": r"""@article{waudbysmith2024,
  author = {Waudby-Smith, Ian and Ramdas, Aaditya},
  title = {Estimating Means of Bounded Random Variables by Betting},
  journal = {Journal of the Royal Statistical Society, Series B},
  volume = {86},
  year = {2024},
}""",
}


def bibliography(keys: Iterable[str]) -> str:
    """The entries of these keys, in their order."""
    return "\n\n".join(_software() if key == "circuitsweep" else _ENTRIES[key] for key in keys) + "\n"


def _software() -> str:
    try:
        released = version("circuit-sweep")
    except PackageNotFoundError:  # a checkout that is not installed
        released = ""
    note = f"\n  note = {{Version {released}}}," if released else ""
    return (
        f"@misc{{circuitsweep,\n  author = {{{{The circuit-sweep authors}}}},\n  title = {{circuit-sweep}},{note}\n}}"
    )
