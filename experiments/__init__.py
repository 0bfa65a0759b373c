"""How far the numbers can be trusted: planted truth, estimators, controls, uncertainty."""
