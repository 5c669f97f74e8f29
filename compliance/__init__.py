"""Everything that must be true before a picture may leave: reviewed, marked, encoded, signed.

A library of plain functions: no web framework and no database, and no network but for what is elsewhere: reviewers that
are models, a signing key, a clock that others believe. Every step is synchronous and safe to run in threads. `service`
serves the review alone over HTTP, and nothing here imports it. `picture.py` has the types and shows the road:

    raw      = decode(data, sha256)                          picture.py
    verdict  = review(raw, context, ruleset, reviewers)      review.py   over rulesets.py and reviewers/
    reviewed = judged(raw, verdict)                          review.py   or Blocked, and then nothing leaves
    marked   = mark(reviewed)                                watermark.py
    encoded  = encode(marked, EncodeOptions(format="jpeg"))  encode.py
    signed   = signer.sign(encoded, Provenance(...))         sign.py
"""
