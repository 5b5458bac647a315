"""Who is connected here, and what may they do?"""
