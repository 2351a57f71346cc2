"""The language that server and client both speak: errors, tensors, directions, estimators, plans, data. numpy at most."""
