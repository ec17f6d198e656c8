"""The words of Wordle: common English words of five letters, in no order that means anything."""

_TEXT = """
    crane table house river stone light bread chair plant cloud horse music paper water green apple train
    beach dream floor glass heart knife lemon money night ocean party queen radio sheep tiger uncle voice
    world youth angle brain candy dance earth field grape honey image juice kneel laugh metal north olive
    pilot quiet round sugar tooth under visit wheel zebra actor badge cabin daily eager fence ghost habit
    ideal joker label magic nurse orbit piano quick robot salad taste urban value wagon young alarm berry
    chalk dozen elbow flame giant hotel index jewel layer
    march novel onion peace quilt rough scarf thank upset virus waste alive block cheer drain enter frost
    grass happy issue judge large mouth noise offer proud raise shelf teach usual vowel wrist about bring
    clean drive empty fresh great human inner knock learn might never order place queue ready small think
    until video write above bench cover depth equal false group heavy known later match newer other point
    quite reach sweet there upper watch again black catch doubt error fruit grain hurry ivory lucky mixed
    needy owner press royal sport truck union vital wound agree broom climb daisy event fifty guess hello
    lunch model nerve opera pearl rapid skirt torch unite vapor width armor blend coach dress extra flute
    globe hatch igloo local medal ninth outer pupil risky smoke tower valid weary angry bloom cream doing
    eight flock grand hobby linen mayor nasty ounce plate roast spoon trail venue worry asset brave craft
    ditch elect front grill hover liver motor noble paint refer shade trust whale award brush crowd dusty
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
