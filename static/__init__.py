"""What does a browser load?"""
