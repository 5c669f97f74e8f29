"""The things that stand in a picture, as rows of letters: one letter is one art pixel.

`C` takes the colour that the prompt asked for; every other letter names a colour of `colours.LETTERS`; a dot is
transparent. Nothing is outlined and eyes are flat blocks of several pixels: a one-pixel line does not survive the
autoencoder, a block does.
"""

AYA = """
..oo............oo..
.oooo..........oooo.
.oonoo........oonoo.
.oonnoo......oonnoo.
.oonnoooooooooonnoo.
.oooooooooooooooooo.
.oooooooooooooooooo.
.ooookkkooookkkoooo.
.ooookkkooookkkoooo.
.ooookkkooookkkoooo.
.wwookkkooookkkooww.
.wwwwoowwwwwwoowwww.
.wwwwwwwwkkwwwwwwww.
..wwwwwwwkkwwwwwww..
....wwwwwwwwwwww....
...rrrrrrrrrrrrrr...
...rrrrrrrrrrrrrr.oo
....oowwwwwwwwoo.ooo
....oowwwwwwwwoo.ooo
....oowwwwwwwwoooooo
....oowwwwwwwwoooow.
....oooowwwwooooowww
....ooooo..ooooo.www
....kkkkk..kkkkk....
"""

BELLA = """
......yy....yy......
......yyy..yyy......
.......yyyyyy.......
.....uuuuuuuuuu.....
...uuuuuuuuuuuuuu...
..uuwwwwuuuuwwwwuu..
..uwwwwwwuuwwwwwwu..
..uwwkkkwuuwkkkwwu..
..uwwkkkwuuwkkkwwu..
..uwwkkkwuuwkkkwwu..
..uwwwwwwyywwwwwwu..
..uuwwwwyyyywwwwuu..
..uuuuuuyyyyuuuuuu..
.buuuuuuuyyuuuuuuub.
.bbuuwwwwwwwwwwuubb.
bbbuwwwwwwwwwwwwubbb
bbbuwwwwwwwwwwwwubbb
bbbuwwwwwwwwwwwwubbb
bbbuwwwwwwwwwwwwubbb
.bbuuwwwwwwwwwwuubb.
..buuuwwwwwwwwuuub..
....uuuuuuuuuuuu....
.....yyyy..yyyy.....
....yyyyy..yyyyy....
"""

TREE = """
.....CCCCCC.....
...CCCCCCCCCC...
..CCCCCCCCCCCC..
.CCCCCCCCCCCCCC.
.CCCCCCCCCCCCCC.
CCCCCCCCCCCCCCCC
CCCCCCCCCCCCCCCC
CCCCCCCCCCCCCCCC
CCCCCCCCCCCCCCCC
.CCCCCCCCCCCCCC.
.CCCCCCCCCCCCCC.
..CCCCCCCCCCCC..
...CCCCCCCCCC...
.....CttttC.....
......tttt......
......tttt......
......tttt......
......tttt......
......tttt......
.....tttttt.....
"""

HOUSE = """
.......tt.......
......tttt......
.....tttttt.....
....tttttttt....
...tttttttttt...
..tttttttttttt..
.tttttttttttttt.
tttttttttttttttt
.CCCCCCCCCCCCCC.
.CCCCCCCCCCCCCC.
.CyyyCCCCCCCCCC.
.CyyyCCCCttttCC.
.CyyyCCCCttttCC.
.CCCCCCCCttttCC.
.CCCCCCCCttttCC.
.CCCCCCCCttttCC.
"""

LIGHTHOUSE = """
.....tt.....
...tttttt...
..tttttttt..
...yyyyyy...
...yyyyyy...
...yyyyyy...
..tttttttt..
...CCCCCC...
...CCCCCC...
...CCCCCC...
...CCCCCC...
...wwwwww...
...wwwwww...
...wwwwww...
..wwwwwwww..
..CCCCCCCC..
..CCCCCCCC..
..CCCCCCCC..
..CCCCCCCC..
..wwwwwwww..
.wwwwwwwwww.
.wwwttttwww.
.wwwttttwww.
.wwwttttwww.
"""

CASTLE = """
...CC..........CC...
..CCCC........CCCC..
.CCCCCC......CCCCCC.
.CCCCCC......CCCCCC.
CCCCCCCC....CCCCCCCC
CCCCCCCC....CCCCCCCC
.ssssss......ssssss.
.ssssss......ssssss.
.ssttss......ssttss.
.ssttss.ssss.ssttss.
.ssttss.ssss.ssttss.
.ssssssssssssssssss.
.ssssssssssssssssss.
.ssssssssssssssssss.
.ssssssttttttssssss.
.sssssttttttttsssss.
.sssssttttttttsssss.
.sssssttttttttsssss.
.sssssttttttttsssss.
.sssssttttttttsssss.
"""

BOAT = """
.......tt.......
.......ttw......
.......ttwww....
.......ttwwww...
.......ttwwwww..
.......ttwwwwww.
.......ttwwwwww.
.......ttwwwwwww
.......tt.......
.......tt.......
CCCCCCCCCCCCCCCC
CCCCCCCCCCCCCCCC
.CCCCCCCCCCCCCC.
..CCCCCCCCCCCC..
...CCCCCCCCCC...
....CCCCCCCC....
"""

MOON = """
......lll...
.......llll.
........lll.
........llll
........llll
........llll
........llll
.......lllll
l.....lllll.
lllllllllll.
.lllllllll..
...lllll....
"""

SPRITES: dict[str, tuple[str, ...]] = {
    name: tuple(art.split())
    for name, art in (
        ("aya", AYA),
        ("bella", BELLA),
        ("tree", TREE),
        ("house", HOUSE),
        ("lighthouse", LIGHTHOUSE),
        ("castle", CASTLE),
        ("boat", BOAT),
        ("moon", MOON),
    )
}
