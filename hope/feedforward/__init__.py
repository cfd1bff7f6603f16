"""What follows the mixer in a block: a file for each kind, and a line here."""

from hope.feedforward import cms, swiglu
from hope.parts import Part

FEEDFORWARD: dict[str, Part] = {
  'cms': cms.PART,
  'swiglu': swiglu.PART,
}
