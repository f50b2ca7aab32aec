"""What logknock promises, as tests."""
