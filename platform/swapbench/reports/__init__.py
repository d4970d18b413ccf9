"""Reports: check runs and the one sticky comment of a pull request. Imports forge, submissions and mergequeue."""
