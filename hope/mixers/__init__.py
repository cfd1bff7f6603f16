"""What mixes tokens: a file for each kind, and a line here."""

from hope.mixers import (
  attention,
  delta,
  lstm,
  mamba,
  rwkv7,
  srwm,
  titans_attention,
  titans_context,
  titans_part,
  ttt,
)
from hope.parts import Part

MIXERS: dict[str, Part] = {
  'titans': titans_part.PART,
  'mal': titans_attention.MAL,
  'mag': titans_attention.MAG,
  'mac': titans_context.MAC,
  'attention': attention.PART,
  'delta': delta.PART,
  'ttt': ttt.PART,
  'rwkv7': rwkv7.PART,
  'lstm': lstm.PART,
  'srwm': srwm.PART,
  'mamba': mamba.PART,
}
