"""The numbers that the four papers print, as data in the papers' own units.

Nothing here was measured by this project, and the room imports nothing of it:
:mod:`opnorm.training` makes presets and grids of these values, and experiments print
them beside their own results.

>>> from opnorm import papers
>>> papers.farnia.TABLE_1.row(
...     dataset="cifar10", architecture="mlp1", scheme="erm"
... ).test
0.49
>>> papers.finlay.TABLE_1.units["distance"]
'pixels in [0, 1]'

- :mod:`opnorm.papers.roth`: Roth, Kilcher & Hofmann 2020, Tables 2 and 3
- :mod:`opnorm.papers.farnia`: Farnia, Zhang & Tse 2019, Tables 1 to 3 and Figs. 10
  and 11
- :mod:`opnorm.papers.regularization_view`: "Towards Understanding the Regularization of
  Adversarial Robustness", Tables 1 to 6 and Appendix B.2
- :mod:`opnorm.papers.finlay`: Finlay & Oberman 2019, Tables 1 to 3
"""

from opnorm.papers import farnia, finlay, regularization_view, roth
from opnorm.papers.table import Table

__all__ = ["Table", "farnia", "finlay", "regularization_view", "roth"]
