"""Everything that must be true before a picture may leave: reviewed, marked, encoded, signed.

A library of plain functions: no web framework, no database, no network. Every step is synchronous CPU work, safe to
run in threads. `picture.py` has the types and shows the road:

    raw      = decode(data, sha256)                          picture.py
    reviewed = review(Case(raw=raw, ...), reviewers)         review.py   or Blocked, and then nothing leaves
    marked   = mark(reviewed)                                watermark.py
    encoded  = encode(marked, EncodeOptions(format="jpeg"))  encode.py
    signed   = signer.sign(encoded, Provenance(...))         sign.py
"""
