"""What mixes tokens: a file for each kind, and a line here."""

from hope.mixers import attention, delta, titans
from hope.parts import Part

MIXERS: dict[str, Part] = {
  'titans': titans.PART,
  'attention': attention.PART,
  'delta': delta.PART,
}
