"""What all threat-model programs share. It imports the public library and nothing of a program.

``result`` what a program reports, ``data`` the images, ``metrics`` numbers and caps,
``transcript`` what the server saw, ``view`` what a server can compute from it, ``plots`` pictures.
"""
