"""What mixes tokens: a file for each kind, and a line here."""

from hope.mixers import attention, delta, lstm, mamba, srwm, titans_part
from hope.parts import Part

MIXERS: dict[str, Part] = {
  'titans': titans_part.PART,
  'attention': attention.PART,
  'delta': delta.PART,
  'lstm': lstm.PART,
  'srwm': srwm.PART,
  'mamba': mamba.PART,
}
