"""What mixes tokens: a file for each kind, and a line here."""

from hope.mixers import (
  attention,
  delta,
  lstm,
  mamba,
  rwkv7,
  srwm,
  titans_part,
  ttt,
)
from hope.parts import Part

MIXERS: dict[str, Part] = {
  'titans': titans_part.PART,
  'attention': attention.PART,
  'delta': delta.PART,
  'ttt': ttt.PART,
  'rwkv7': rwkv7.PART,
  'lstm': lstm.PART,
  'srwm': srwm.PART,
  'mamba': mamba.PART,
}
