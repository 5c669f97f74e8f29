"""Who looks at a picture: one module per kind of reviewer, each with the protocol of `compliance.review.Reviewer`."""
