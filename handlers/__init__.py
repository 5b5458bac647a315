"""How do bytes come in and go out?"""
