"""Do the rows of Roth et al.'s Table 2 hold, at equal clean accuracy and over seeds?"""
