"""How does an event get its position and reach every node, and where is it kept?"""
