"""The words that the problems are made of. All lists are the project's own."""

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()

COLORS = "red blue green yellow black white orange purple pink brown gray gold silver".split()
ANIMALS = "cat dog bird fish horse cow sheep goat mouse bear fox wolf lion duck frog".split()
OBJECTS = "box ball cup book lamp chair table door key hat coat bag pen clock spoon bowl".split()
NAMES = ("Anna Tom Mia Ben Lea Max Eva Sam Ida Leo Nina Paul Rosa Hugo Clara Otto Vera Emil Jana "
         "Karl").split()

# Words to spell and to count letters in, beside the invented ones.
COMMON = """
able about above across after again air almost along also always among animal answer apple area
arm around ask autumn away baby back bake balance banana bank basket battle beach bean beautiful
because become bed before begin behind bell below beside best better between bicycle big birthday
blanket blood board boat body bone bottle bottom branch brave bread breakfast bridge bright bring
brother brush bubble bucket build bundle butter button cabin cake camera camp candle capital captain
carbon card careful carpet carrot carry castle catch center cereal certain chain chance change
chapter cheese cherry chicken child chocolate choose church circle city class clean clear climb
close cloud coast coffee cold collect comfort common copper corner cotton count country couple
course cousin cover cream create cross crowd cry curtain cushion cycle dance danger dark daughter
deep deliver desert desk diamond different dinner direct distance doctor dollar double down dragon
draw dream dress drink drive drop dry dust early earth east easy edge effort egg eight electric
elephant eleven empty end engine enjoy enough evening every exact example explain eye face fact fall
family famous farm farmer father feather feel fence fever field fifteen fight finger finish fire
first flag floor flower fly follow food foot forest forget fork forward fountain four free freedom
fresh friend front fruit full funny future game garage garden garlic gate gentle giant ginger giraffe
give glass glove glue goose grain grape grass great grid ground group grow guard guess guest guitar
hammer hand happen happy harbor hard harvest hazel head health heart heavy height hello help hill
history hobby hold holiday honey hope hospital hotel hour house hundred hunger hunt ice idea inch
insect inside iron island ivory jacket jelly jewel join joke journey judge juice jump jungle keep
kettle kind king kitchen kite kitten knee knife knock know ladder lake language large last late laugh
leaf learn leather leave lemon lesson letter level library life light limit line lip list listen
little live local lock long look lose loud love lucky lunch machine magic magnet major make mango
many map marble market master matter maybe meadow meal measure meat melon member memory metal middle
mile milk million mind mineral minute mirror mississippi mix model modern moment money monkey moon
morning mother motor mountain mouth move much muscle museum mushroom music nail narrow nation nature
near neck needle neighbor nest never new next night nine noise north nose note nothing number nurse
nut ocean offer office often oil old olive onion only open order other outside oven over owl owner
package page paint pair palace palm panda paper parade parent park parrot party pass past path pause
peace peach pear pebble pencil pepper perfect person phone photo piano picture piece pigeon pillow
pilot pine pipe pirate pizza place plane planet plant plate play please pocket poem point police
polite pond pony pool popular port potato powder power present press pretty price prince print
prize problem promise proud pull pumpkin puppet purse push puzzle queen question quick quiet quilt
rabbit race radio rain rainbow raise raspberry reach read ready real reason record remember repair
report rest return rice rich ride right ring rise river road robin robot rock roof room root rope
rose round ruler run saddle safe sail salad salt same sand sandwich sauce save scale school science
scissors score sea season second secret seed seven shade shadow shape share sharp shell shelter ship
shirt shoe shop shore short shoulder shout show shower sick side sign silence simple sing sister size
skate skill skin skirt sky sleep slice slow small smell smile smoke snake snow soap soccer sock soft
soldier some song soon sound soup south space spare speak special speed spell spider spin spoon
sport spring square squirrel stable stamp star start station stay steam steel step stick still stone
stop store storm story straight strange strawberry stream street string strong student study sugar
suit summer sun supper sure surprise sweet swim swing switch sword system tail tale talk tall tea
teach teacher team tell temple ten tennis tent thank theater thick thin thing think thirteen thread
three thumb thunder ticket tie tiger time tin tiny tired toast today toe together tomato tomorrow
tongue tool tooth top torch touch towel tower town toy track trade traffic train travel treasure tree
trip trouble truck true trumpet trust try tulip tunnel turkey turn turtle twelve twenty twig two
umbrella uncle under uniform until up use useful valley value vanilla vegetable very victory village
violin visit voice volcano wagon wait walk wall walnut want warm wash watch water wave weather week
welcome west wet whale wheat wheel whisper wild win wind window wing winter wish woman wonder wood
wool word work world worm worry write wrong yard year yellow yesterday young zebra zero zone
""".split()

# Invented words: two or three syllables of these parts.
ONSETS = "b c d f g h j k l m n p r s t v w z br cl cr dr fl gr pl pr sh sl sn st tr th ch qu".split()
VOWELS = "a e i o u a e i o u a e o ai ea ee oo ou y".split()
CODAS = ["", "", "", "", "l", "m", "n", "r", "s", "t", "d", "k", "x", "ck", "ll", "nd", "ng", "st"]


def invented(rng):
    """A word that looks like one, of 2 to 3 syllables and at most 11 letters."""
    while True:
        count = 2 + (rng.random() < 0.35)
        word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
                       for _ in range(count))
        if len(word) <= 11:
            return word
