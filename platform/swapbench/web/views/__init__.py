"""The pages. A view parses the request and answers it; what is shown comes from `queries`, what is done from actions."""
