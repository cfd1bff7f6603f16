"""Baselines are scored on the bytes that the model is scored on."""

import numpy as np
import pytest

from hope.config import base_config
from hope.data import documents, open_data
from hope.evaluation import baselines


def texts(kind, number):
  rng = np.random.default_rng(number)
  if kind == 'binary':
    return rng.integers(0, 256, 900, np.uint8).tobytes()
  words = rng.choice(['caf\xe9', 'd\xe9j\xe0', '\xe0', 'na\xefve', 'the'], 200)
  if kind == 'cjk':
    words = rng.choice(['\u6f22\u5b57', '\u4eca\u65e5', '\u3067\u3059'], 200)
  coding = {'latin-1': 'latin-1', 'cjk': 'shift_jis', 'utf-16': 'utf-16'}[kind]
  return ' '.join(words).encode(coding)


@pytest.mark.parametrize('tokenizer', ['byte', 'bpe-train:262'])
@pytest.mark.parametrize('kind', ['latin-1', 'cjk', 'utf-16', 'binary'])
def test_baselines_score_the_raw_bytes(tmp_path, kind, tokenizer):
  for number in range(40):
    (tmp_path / f'{number}.txt').write_bytes(texts(kind, number))
  config = base_config()
  config.data.update(
    source=f'text:{tmp_path}/*.txt',
    heldout_fraction=0.3,
    seq_len=60,
    batch_size=2,
    tokenizer=tokenizer,
  )
  config.evals.batches = 10**4  # all rows: next to all held-out bytes
  data = open_data(config)
  marks = baselines.of_data(data)
  train = [text for _, text in documents(config, 'train')]
  heldout = b''.join(text for _, text in documents(config, 'heldout'))
  # Of a row, the first token is given and not scored.
  assert 0.7 < len(data.heldout_text) / len(heldout) < 1
  expected = baselines.order2_bits_per_byte(train, data.heldout_text)
  assert marks['order-2 counts'] == expected
  # And close to that of the whole documents, which the first bytes of rows cut.
  whole = baselines.order2_bits_per_byte(train, heldout)
  assert abs(expected - whole) < 0.5
  # The bytes of byte rows are their targets.
  if tokenizer == 'byte':
    targets = np.concatenate([b['targets'] for b in data.eval_batches()])
    kept = targets[targets < 256].astype(np.uint8).tobytes()
    assert data.heldout_text == kept
    assert data.bytes_per_token == len(kept) / targets.size
