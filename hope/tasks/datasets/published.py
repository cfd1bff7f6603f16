"""The files that data sets publish, and whether a folder has them."""

from collections.abc import Sequence
import hashlib
import pathlib

# sha256 of the files whose numbers the documentation states, by data set.
HASHES: dict[str, dict[str, str]] = {
  'lambada': {
    'lambada_test.jsonl': '4aa8d02cd17c719165fc8a7887fddd64'
    '1f43fcafa4b1c806ca8abc31fabdb226',
  },
  'piqa': {
    'valid.jsonl': '93503cc97c679e459b065c3d13e84828'
    '2e44b2a25213985bed3e5d458abef72d',
    'valid-labels.lst': 'b4192dc3a2a0363d9d60ccf79800cbbe'
    '2f32ebb17726efdde6970e0b8131bceb',
  },
  'xquad': {
    'xquad.en.json': 'e4c57d1c9143aaa1c5d265ba5987a65f'
    '4e69528d2a98f29d6e75019b10344f29',
  },
  'clinc150': {
    'data_full.json': '36923c3705a59e08fe9c3883d8bc2dd9'
    '66ef93e22cb78ac41171782a698d56e0',
    'domains.json': 'b947b579d3b8e74b06f93b01083d8efa'
    'ff2888b43a3e362533bd88a6e1211b3a',
  },
  'banking77': {
    'train.csv': 'b06e26ac675513959a63135f11b94ea7'
    '786ed02da65db93a5650d8838cbc664b',
    'test.csv': 'd12d6e3bc4c3103966ae786dc435913c'
    '0c563dfa328f5a3646d0e62cfeeb474d',
    'categories.json': '53261da888122daf2d120d925458631d'
    '9619e15d82e56052e7a42e535ce32b63',
  },
  'kalamang': {
    'examples.csv': '5f43454d7de4e91a9f82a4330ac6b6ad'
    'c6f2927663a082df1aaa4eb4dd817764',
  },
  'teop': {
    'examples.csv': 'b60f2343a8ef72e292aef7cb4d45dfaf'
    '04329884836e909c718f4992dc65ae1a',
  },
  # Read by the format that is published; never seen here.
  'arc_easy': {'ARC-Easy-Test.jsonl': ''},
  'arc_challenge': {'ARC-Challenge-Test.jsonl': ''},
  'siqa': {'dev.jsonl': '', 'dev-labels.lst': ''},
  'winogrande': {'dev.jsonl': ''},
  'hellaswag': {'hellaswag_val.jsonl': ''},
  'boolq': {'dev.jsonl': ''},
  'squad': {'dev-v1.1.json': ''},
  'swde': {'swde.jsonl': ''},
  'fda': {'fda.jsonl': ''},
  'drop': {'drop_dataset_dev.json': ''},
  'nq': {'v1.0-simplified_nq-dev-all.jsonl': ''},
  'triviaqa': {'verified-wikipedia-dev.json': ''},
}


def state(folder: pathlib.Path | None, name: str) -> str:
  """Of a data set's files in `folder/NAME`, in a few words."""
  if folder is None:
    return ''
  states = []
  for file, expected in HASHES[name].items():
    path = folder / name / file
    if not path.is_file():
      return f'missing: {file}'
    if expected:
      same = hashlib.sha256(path.read_bytes()).hexdigest() == expected
      states.append('as published' if same else f'other content: {file}')
    else:
      states.append('there; no hash is known')
  return worst(states)


def worst(states: Sequence[str]) -> str:
  """The state of a set: that of its worst file."""
  for start in ('other', 'there'):
    for found in states:
      if found.startswith(start):
        return found
  return states[0]
