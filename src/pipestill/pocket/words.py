"""Word lists of the pocket world, and the English words the tokenizer keeps whole.

They live apart from the rules so that a reader of the rules is not lost in lists, and so that
the tokenizer can promise one token for every word that the tiny models must reason about.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    """Split a block of words; a block is easier to read and to change than a list of strings."""
    return tuple(text.split())


NAMES = _words(
    """
    Maria Omar Lena Victor Amina Paul Ingrid Tomas Yara Felix Nadia Hugo Priya Boris Clara Diego
    Sofia Marco Hana Peter Leila Oscar Julia Kofi Elena Simon Wanda Rafael Greta Ivan Zoe Adam
    Noor Lukas Vera Samir Alice Bruno Dora Emil
    """
)

CITIES = _words(
    """
    Lisbon Oslo Cairo Lima Porto Delhi Turin Quito Dublin Hanoi Malmo Accra Riga Kyoto Boston
    Lyon Tunis Bergen Madrid Perth Zagreb Dakar Vienna Cork Naples Seoul Bremen Lagos Tallinn
    Denver Krakow Santiago Gdansk Nairobi Ghent Utrecht Izmir Basel Osaka Leeds
    """
)

PAYMENTS = _words(
    """
    card cash wire voucher transfer check
    """
)

# Things that other desks deal with. None of them is sold by the refund desk.
DESK_NOUNS = _words(
    """
    novel atlas diary poem comic journal manual thesis letter essay parrot lizard rabbit goat
    pony turtle donkey falcon badger beaver truck van tractor scooter wagon trailer jeep taxi
    bus sedan rose tulip cactus fern lily basil cedar maple willow bamboo cake pie soup salad
    bread cheese noodle pancake waffle stew boat canoe ferry barge yacht kayak raft tanker
    cutter dinghy statue vase mural mosaic relic sketch portrait fresco bust coin loan bond
    grant deposit mortgage pension bill stipend refill budget violin cello drum flute harp
    trumpet banjo piano guitar fiddle passport visa permit ticket badge pass license token stamp
    card sample vaccine plaster syrup tonic pill lotion serum gel tablet brick plank pipe tile
    beam cable panel gravel pane girder hut cabin tent villa loft cottage barn tower suite lodge
    parcel crate box bundle sack barrel basket trunk chest folder
    """
)

# Marks that other desks look at. None of them is used by the refund desk.
DESK_MARKS = _words(
    """
    red blue green yellow purple brown grey pink black white golden silver tall short wide
    narrow round square flat thick thin long loud quiet fast slow warm cold dry wet soft hard
    bright dark deep shallow early young old modern simple complex local foreign public private
    legal common rare heavy light full empty hollow solid smooth rough sharp blunt sweet sour
    salty bitter fresh stale tame wild calm angry brave shy lazy busy proud humble royal plain
    fancy cheap dear open shut locked loose tight steep level curved straight striped dotted
    hairy bald furry spiny
    """
)

DESK_CLASSES = (
    ("fine", "risky"), ("safe", "unsafe"), ("good", "bad"), ("grade one", "grade two"),
    ("standard", "special"), ("simple", "hard"), ("class one", "class two"), ("strong", "weak"),
)  # fmt: skip

DESK_OUTCOMES = _words(
    """
    renew fine keep release hold accept deny approve reject pass fail repair replace send wait
    store ship move stop allow block call visit charge free split close
    """
)

DESK_VERBS = _words(
    """
    borrows keeps parks plants orders docks shows signs tunes files tests stacks books sends
    weighs paints
    """
)

# Frequent English words, so that ordinary questions do not fall apart into letters.
ENGLISH = _words(
    """
    the of and to in a is that it was for on are as with his they at be this from have or by one
    had not but what all were when we there can an your which their said if do will each about
    how up out them then she many some so these would other into has more her two like him see
    time could no make than first been its who now people my made over did down only way find
    use may water long little very after words called just where most know get through back much
    before go good new write our used me man too any day same right look think also around
    another came come work three word must because does part even place well such here take why
    things help put years different away again off went old number great tell men say small
    every found still between name should mr home big give air line set own under read last
    never us left end along while might next sound below saw something thought both few those
    always looked show large often together asked house world going want school important until
    form food keep children feet land side without boy once animals life enough took sometimes
    four head above kind began almost live page got earth need far hand high year mother light
    parts country father let night following picture being study second eyes soon times story
    boys since white days ever paper hard near sentence better best across during today others
    however sure means knew try told young miles sun ways thing whole hear example heard several
    change answer room sea against top turned learn point city play toward five using himself
    usually money seen morning body upon family later turn move face door cut done group true
    half fish plants living black eat short united run book gave order open ground cold really
    table remember tree course front american space inside ago sad early learned brought close
    nothing though idea lived became add become grow draw yet less wind behind cannot letter
    among able dog shown mean english rest perhaps certain six feel fire ready green built
    special ran full town complete oh person hot anything hold state list stood hundred ten fast
    felt kept notice strong voice probably area horse matter stand box start class piece surface
    river common stop whose talk quickly fall blue ocean plan road happened power problem
    language wood low ship clear warm travel woman snow walk plane music bird bed bus car buy
    bring drink sleep eating cook kitchen office store shop market bank hotel park street
    building wall floor window garden forest mountain lake beach island farm field church
    library museum hospital station airport theater restaurant doctor teacher student friend
    child baby wife husband brother sister king lady worker customer company business job trade
    price cost pay paid sell sold free cheap expensive dinner lunch breakfast bread milk meat
    fruit apple sugar salt tea coffee wine beer ice glass cup plate bowl bag shoe shirt dress
    hat coat chair desk lamp clock phone computer television radio movie game ball team win lose
    fun happy angry tired hungry sick pain death dead blood heart brain bone skin hair eye ear
    nose mouth tooth leg foot arm finger war fight gun police prison law rule government
    president party vote tax history science math art culture religion god love hate fear hope
    wish dream believe understand explain describe question choose choice correct wrong likely
    unlikely possible impossible cause effect result reason purpose someone everyone anyone
    nobody everything somewhere anywhere whom happen becomes doing having making taking getting
    playing working looking trying watching reading writing driving running walking talking
    thinking feeling learning teaching buying selling cleaning washing cutting growing moving
    waiting dying fly swim jump drive ride climb throw catch push pull carry lift break fix
    clean wash burn freeze melt boil cool heat dry wet soft heavy empty dark bright quiet loud
    dangerous safe easy difficult simple rich poor famous popular beautiful ugly nice bad worse
    worst weather rain storm summer winter spring autumn week month hour minute tomorrow
    yesterday north south east west cat cow pig sheep chicken bear lion monkey mouse rat snake
    frog insect bee spider flower grass leaf seed root rock stone sand metal gold iron steel oil
    gas energy electric machine engine wheel tool knife key rope pen pencil card map sign email
    internet website newspaper magazine record song dance sing sport football soccer baseball
    race train truck bicycle boat bridge tunnel subway traffic accident emergency danger trouble
    solution premise hypothesis entailment neutral contradiction statement claim total sum
    difference per equals twice third quarter percent dollars cents euros pounds apples marbles
    books pages boxes
    """
)

SUFFIXES = _words(
    """
    s es ed ing er ers est ly ness ment tion sion able ible ful less ous ive al y ity
    """
)
