"""The merge queue: qualified code enters, the exact merge result is tested, the branch moves. Imports forge, intake, submissions."""
