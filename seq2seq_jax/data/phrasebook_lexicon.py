"""The words of the built-in phrasebook as tables: nouns, verbs, adjectives, adverbials and names.

English, French and German parts stand between bars; whatever a regular rule gives is left out, and
`phrasebook_words` reads the tables and applies the rules. Kinds are one-letter semantic classes, used only to keep
sentences sensible:

    p person · a animal · f countable food · m food by the mass · d drink · r reading · o portable thing · c clothes
    v vehicle · t transport · l place one goes to · i place with an inside · s furniture with a top · b building
    w other
"""

from __future__ import annotations

# key[:English plural] kinds|French gender [plural]|German singular, gender, plural [weak]; between semicolons
NOUNS = """
doctor p|médecin m|Arzt m Ärzte ; teacher p|professeur m|Lehrer m Lehrer
student p|étudiant m|Student m Studenten Studenten ; boy p|garçon m|Junge m Jungen Jungen
girl p|fille f|Mädchen n Mädchen ; man:men p|homme m|Mann m Männer ; woman:women p|femme f|Frau f Frauen
child:children p|enfant m|Kind n Kinder ; friend p|ami m|Freund m Freunde
neighbour p|voisin m|Nachbar m Nachbarn Nachbarn ; brother p|frère m|Bruder m Brüder
sister p|sœur f|Schwester f Schwestern ; mother p|mère f|Mutter f Mütter ; father p|père m|Vater m Väter
aunt p|tante f|Tante f Tanten ; uncle p|oncle m|Onkel m Onkel
grandmother p|grand-mère f grands-mères|Großmutter f Großmütter
grandfather p|grand-père m grands-pères|Großvater m Großväter ; baker p|boulanger m|Bäcker m Bäcker
farmer p|agriculteur m|Bauer m Bauern Bauern ; lawyer p|avocat m|Anwalt m Anwälte
nurse p|infirmière f|Krankenschwester f Krankenschwestern ; artist p|artiste m|Künstler m Künstler
actress p|actrice f|Schauspielerin f Schauspielerinnen ; queen p|reine f|Königin f Königinnen
king p|roi m|König m Könige ; waitress p|serveuse f|Kellnerin f Kellnerinnen
soldier p|soldat m|Soldat m Soldaten Soldaten ; cook p|cuisinier m|Koch m Köche ; driver p|chauffeur m|Fahrer m Fahrer
customer p|client m|Kunde m Kunden Kunden ; tourist p|touriste m|Tourist m Touristen Touristen
policeman:policemen p|policier m|Polizist m Polizisten Polizisten ; gardener p|jardinier m|Gärtner m Gärtner
colleague p|collègue m|Kollege m Kollegen Kollegen ; dog a|chien m|Hund m Hunde ; cat a|chat m|Katze f Katzen
horse a|cheval m chevaux|Pferd n Pferde ; bird a|oiseau m|Vogel m Vögel ; cow a|vache f|Kuh f Kühe
mouse:mice a|souris f|Maus f Mäuse ; rabbit a|lapin m|Kaninchen n Kaninchen ; duck a|canard m|Ente f Enten
bat a|chauve-souris f chauves-souris|Fledermaus f Fledermäuse ; fox a|renard m|Fuchs m Füchse
bear a|ours m|Bär m Bären Bären ; goat a|chèvre f|Ziege f Ziegen ; bread m|pain m|Brot n Brote
cheese m|fromage m|Käse m Käse ; butter m|beurre m|Butter f Butter ; meat m|viande f|Fleisch n Fleisch
rice m|riz m|Reis m Reis ; soup m|soupe f|Suppe f Suppen ; honey m|miel m|Honig m Honig
apple f|pomme f|Apfel m Äpfel ; cake f|gâteau m|Kuchen m Kuchen ; egg f|œuf m|Ei n Eier
orange f|orange f|Orange f Orangen ; pear f|poire f|Birne f Birnen ; cherry f|cerise f|Kirsche f Kirschen
tomato:tomatoes f|tomate f|Tomate f Tomaten ; onion f|oignon m|Zwiebel f Zwiebeln
carrot f|carotte f|Karotte f Karotten ; water d|eau f|Wasser n Wasser ; milk d|lait m|Milch f Milch
tea d|thé m|Tee m Tees ; coffee d|café m|Kaffee m Kaffees ; wine d|vin m|Wein m Weine ; beer d|bière f|Bier n Biere
juice d|jus m|Saft m Säfte ; book r|livre m|Buch n Bücher ; letter r|lettre f|Brief m Briefe
newspaper r|journal m journaux|Zeitung f Zeitungen ; story r|histoire f|Geschichte f Geschichten
poem r|poème m|Gedicht n Gedichte ; message r|message m|Nachricht f Nachrichten
report r|rapport m|Bericht m Berichte ; novel r|roman m|Roman m Romane ; key o|clé f|Schlüssel m Schlüssel
bag o|sac m|Tasche f Taschen ; lamp o|lampe f|Lampe f Lampen ; watch o|montre f|Uhr f Uhren
box o|boîte f|Schachtel f Schachteln ; knife:knives o|couteau m|Messer n Messer ; cup o|tasse f|Tasse f Tassen
plate o|assiette f|Teller m Teller ; bottle o|bouteille f|Flasche f Flaschen
umbrella o|parapluie m|Regenschirm m Regenschirme ; phone o|téléphone m|Telefon n Telefone
painting o|tableau m|Gemälde n Gemälde ; photo o|photo f|Foto n Fotos ; ball o|balle f|Ball m Bälle
toy o|jouet m|Spielzeug n Spielzeuge ; flower o|fleur f|Blume f Blumen ; gift o|cadeau m|Geschenk n Geschenke
basket o|panier m|Korb m Körbe ; ring o|bague f|Ring m Ringe ; pencil o|crayon m|Bleistift m Bleistifte
hammer o|marteau m|Hammer m Hämmer ; blanket o|couverture f|Decke f Decken ; guitar o|guitare f|Gitarre f Gitarren
radio o|radio f|Radio n Radios ; computer o|ordinateur m|Computer m Computer ; chair s|chaise f|Stuhl m Stühle
table s|table f|Tisch m Tische ; bed s|lit m|Bett n Betten ; shelf:shelves s|étagère f|Regal n Regale
sofa s|canapé m|Sofa n Sofas ; coat c|manteau m|Mantel m Mäntel ; dress c|robe f|Kleid n Kleider
hat c|chapeau m|Hut m Hüte ; shirt c|chemise f|Hemd n Hemden ; scarf:scarves c|écharpe f|Schal m Schals
jacket c|veste f|Jacke f Jacken ; skirt c|jupe f|Rock m Röcke ; house ib|maison f|Haus n Häuser
school lib|école f|Schule f Schulen ; station lib|gare f|Bahnhof m Bahnhöfe ; bank lb|banque f|Bank f Banken
hotel lib|hôtel m|Hotel n Hotels ; church lib|église f|Kirche f Kirchen ; museum lib|musée m|Museum n Museen
garden i|jardin m|Garten m Gärten ; park li|parc m|Park m Parks ; kitchen i|cuisine f|Küche f Küchen
library lib|bibliothèque f|Bibliothek f Bibliotheken ; restaurant lib|restaurant m|Restaurant n Restaurants
shop lib|magasin m|Laden m Läden ; forest i|forêt f|Wald m Wälder
hospital lib|hôpital m hôpitaux|Krankenhaus n Krankenhäuser ; castle lib|château m|Schloss n Schlösser
village i|village m|Dorf n Dörfer ; theatre lib|théâtre m|Theater n Theater ; market l|marché m|Markt m Märkte
bedroom i|chambre f|Schlafzimmer n Schlafzimmer ; factory lib|usine f|Fabrik f Fabriken
bakery lib|boulangerie f|Bäckerei f Bäckereien ; airport l|aéroport m|Flughafen m Flughäfen
garage i|garage m|Garage f Garagen ; tower b|tour f|Turm m Türme ; bridge b|pont m|Brücke f Brücken
spring w|source f|Quelle f Quellen ; river w|rivière f|Fluss m Flüsse ; lake w|lac m|See m Seen
car vt|voiture f|Auto n Autos ; bicycle v|vélo m|Fahrrad n Fahrräder ; boat vt|bateau m|Boot n Boote
truck vt|camion m|Lastwagen m Lastwagen ; train t|train m|Zug m Züge ; bus:buses t|bus m|Bus m Busse
plane t|avion m|Flugzeug n Flugzeuge ; door w|porte f|Tür f Türen ; window w|fenêtre f|Fenster n Fenster
light w|lumière f|Licht n Lichter ; song w|chanson f|Lied n Lieder ; film w|film m|Film m Filme
game o|jeu m jeux|Spiel n Spiele ; question w|question f|Frage f Fragen ; answer w|réponse f|Antwort f Antworten
"""

# English (key) | French m [f [m before a vowel]], + before the noun | German [stem] | kinds or nouns [| comparatives]
ADJECTIVES = """
old|+vieux vieille vieil|alt|p a o c s b v r|older, älter
young|+jeune|jung|p a|younger, jünger
big|+grand|groß|a b s v bag box key umbrella lamp window door garden kitchen|bigger, größer
small|+petit|klein|a b s v o f window door garden kitchen|smaller, kleiner
new|+nouveau nouvelle nouvel|neu|o c s b v r film song game
beautiful|+beau belle bel|schön|a o c b garden song spring river lake
good|+bon bonne|gut|r d m f film song game question
bad|+mauvais|schlecht|r wine film song game question answer
long|+long longue|lang|letter story poem novel report film dress coat scarf bridge river song
red|rouge|rot|o c v f wine door
green|vert|grün|o c v door
blue|bleu|blau|o c v door
black|noir|schwarz|o c v dog cat horse bird
white|blanc blanche|weiß|o c v dog cat horse bird rabbit goat house wine
yellow|jaune|gelb|o c v
expensive|cher chère|teuer teur|o c v hotel restaurant wine|more expensive, teurer
heavy|lourd|schwer|o s|heavier, schwerer
light=light|léger légère|leicht|o c boat bicycle|lighter, leichter
light=bright|clair|hell|kitchen bedroom house library
dark|sombre|dunkel dunkl|kitchen bedroom house garage forest church
empty|vide|leer|bag box bottle cup plate basket shop house garage train bus bedroom restaurant
clean|propre|sauber|c v bag cup plate bottle knife kitchen bedroom window
dirty|sale|schmutzig|c v bag cup plate bottle knife kitchen bedroom window
happy|heureux heureuse|glücklich|p
sad|triste|traurig|p story song film
tired|fatigué|müde müd|p a
sick|malade|krank|p a
rich|riche|reich|p|richer, reicher
poor|pauvre|arm|p|poorer, ärmer
famous|célèbre|berühmt|p museum castle church bridge tower painting novel poem song film
strong|fort|stark|p bear horse cow|stronger, stärker
polite|poli|höflich|p
brave|courageux courageuse|mutig|p dog
lazy|paresseux paresseuse|faul|p cat dog
clever|intelligent|klug|p dog fox
hot|chaud|heiß|soup tea coffee milk water meat
cold|froid|kalt|soup tea milk water beer juice bedroom house
fresh|frais fraîche|frisch|bread butter milk water f meat
delicious|délicieux délicieuse|köstlich|m f wine tea coffee juice beer
interesting|intéressant|interessant|r film game question museum answer
boring|ennuyeux ennuyeuse|langweilig|r film game
difficult|difficile|schwierig|game question poem story report novel
easy|facile|einfach|game question poem story report novel
right|+bon bonne|richtig|answer
important|important|wichtig|letter message report question answer
modern|moderne|modern|b chair lamp kitchen computer
quiet|calme|ruhig|garden park village hotel library lake forest
dangerous|dangereux dangereuse|gefährlich|bear river game knife forest
strange|étrange|seltsam|story poem message painting film song question answer
elegant|élégant|elegant|c watch bag actress queen lamp hotel
fast|rapide|schnell|v horse train plane|faster, schneller
"""

# English [past] | French [irregular forms; flags] | German [irregular forms; flags] | subjects | objects
VERBS = """
see saw|voir vois vois voit voyons voyez voient verr vu|sehen siehst sieht gesehen|pa|p a film castle spring bridge
buy bought|acheter|kaufen|p|o c f m d r v s bat=tool
sell sold|vendre vendu|verkaufen|p|o c f m d v s bat=tool house
read read|lire lis lis lit lisons lisez lisent lir lu|lesen liest liest gelesen|p|r
write wrote|écrire écris écris écrit écrivons écrivez écrivent écrir écrit|schreiben geschrieben|p|r -newspaper song
eat ate|manger|essen isst isst gegessen|p|m f
drink drank|boire bois bois boit buvons buvez boivent boir bu|trinken getrunken|p|d
find found|trouver|finden gefunden|p|o r c dog cat bicycle spring letter bat=tool answer
look>for|chercher|suchen|p|o r c p dog cat station hotel spring
lose lost|perdre perdu|verlieren verloren|p|o c bat=tool
open|ouvrir ouvre ouvres ouvre ouvrons ouvrez ouvrent ouvrir ouvert|auf_machen|p|door window box bottle bag letter shop
close|fermer|zu_machen|p|door window box bottle bag shop book
repair|réparer|reparieren|p|v lamp watch radio phone computer toy guitar chair bed door bridge bat=tool
wash|laver|waschen wäschst wäscht gewaschen|p|c v cup plate bottle knife dog horse window
visit|visiter|besichtigen|p|museum castle church village tower factory
visit=call_on|rendre rendu +à visite|besuchen|p|p
know=person knew|connaître connais connais connaît connaissons connaissez connaissent connaîtr connu|\
kennen gekannt;now|p|p r b song
love|aimer;|lieben;now|p|p a cheese honey coffee
need|avoir ai as a avons avez ont aur eu +de besoin|brauchen;now|p|o m key bag doctor lawyer nurse car bicycle boat coat
help|aider|helfen hilfst hilft geholfen;dat|p|p
thank|remercier|danken;dat|p|p
follow|suivre suis suis suit suivons suivez suivent suivr suivi|folgen;dat be|pa|p a car bus boat river
call|téléphoner +à|an_rufen angerufen|p|p
invite|inviter|ein_laden lädst lädt eingeladen|p|p
meet met|rencontrer|treffen triffst trifft getroffen|p|p
bring brought|apporter|mit_bringen mitgebracht|p|o m d f r chair
wear wore|porter|tragen trägst trägt getragen|p|c ring watch
break broke|casser|zerbrechen zerbrichst zerbricht zerbrochen|p|cup plate bottle lamp toy chair window bat=tool
draw drew|dessiner|zeichnen|p|a flower house boat bridge castle tower
clean|nettoyer|putzen|p|kitchen bedroom window car bicycle house garage
tidy>up|ranger|auf_räumen|p|kitchen bedroom garage shop house
cook|préparer|kochen|p|m -bread -butter -honey -cheese egg carrot
cut cut|couper|schneiden geschnitten|p|bread cheese cake apple orange pear tomato onion carrot meat
hear heard|entendre entendu|hören|pa|p a song train bus
watch|regarder|beobachten|pa|a child tourist soldier boat plane train
admire|admirer|bewundern|p|painting castle church b actress queen flower garden lake
forget forgot|oublier|vergessen vergisst vergisst vergessen|p|o c letter book question
understand understood|comprendre comprends comprends comprend comprenons comprenez comprennent comprendr compris|\
verstehen verstanden|p|question answer story poem film game message report
build built|construire construis construis construit construisons construisez construisent construir construit|\
bauen|p|house b boat table chair shelf -museum
sing sang|chanter|singen gesungen|p|song
leave=place left|quitter|verlassen verlässt verlässt verlassen|p|house village l -market garden kitchen bedroom
throw<away threw|jeter|weg_werfen wirfst wirft weggeworfen|p|r c box bottle toy plate flower
put<on put|mettre mets mets met mettons mettez mettent mettr mis|an_ziehen angezogen|p|coat dress shirt jacket skirt
turn<on|allumer|an_machen|p|lamp radio computer light
turn<off|éteindre éteins éteins éteint éteignons éteignez éteignent éteindr éteint|\
aus_machen|p|lamp radio computer light
choose chose|choisir|aus_suchen|p|c o r film song hotel chair
hide hid|cacher|verstecken versteckt|p|o letter bread cheese book
feed fed|nourrir|füttern|p|a -bat -fox -bear -mouse
steal stole|voler|stehlen stiehlst stiehlt gestohlen|p|o car bicycle horse cheese boat
give gave|donner|geben gibst gibt gegeben|p|to:o r c f
show showed|montrer|zeigen|p|to:o r house castle garden bridge a
send sent|envoyer envoie envoies envoie envoyons envoyez envoient enverr envoyé|\
schicken|p|to:letter message report gift book photo flower poem painting box
explain|expliquer|erklären erklärt|p|to:question answer game poem film story report
lend lent|prêter|leihen geliehen|p|to:o c v -gift -ring book novel
tell told|raconter|erzählen erzählt|p|to:story
put=lay put|poser|legen|p|on:o r c
sleep slept|dormir dors dors dort dormons dormez dorment dormir dormi|schlafen schläfst schläft geschlafen|pa|
work|travailler|arbeiten|p|
laugh|rire ris ris rit rions riez rient rir ri|lachen|p|
cry|pleurer|weinen|p|
dance|danser|tanzen|p|
swim swam|nager|schwimmen geschwommen;be|pa|
run ran|courir cours cours court courons courez courent courr couru|laufen läufst läuft gelaufen;be|pa|
wait|attendre attendu|warten|p|
arrive|arriver;be|an_kommen angekommen;be|pt|
leave left|partir pars pars part partons partez partent partir parti;be|ab_fahren fährst fährt abgefahren;be|t|
leave=travel left|partir pars pars part partons partez partent partir parti;be|ab_reisen;be|p|
stay|rester;be|bleiben geblieben;be|p|
fall fell|tomber;be|fallen fällst fällt gefallen;be|pa|
come>back came|revenir reviens reviens revient revenons revenez reviennent reviendr revenu;be|\
zurück_kommen zurückgekommen;be|pa|
get>up got|lever;refl|auf_stehen aufgestanden;be|p|
fall>asleep fell|endormir endors endors endort endormons endormez endorment endormir endormi;refl|\
ein_schlafen schläfst schläft eingeschlafen;be|pa|
hurry|dépêcher;refl|beeilen beeilt;refl|p|
rest|reposer;refl|aus_ruhen;refl|pa|
go went|aller vais vas va allons allez vont ir allé;be|gehen gegangen;be|p|to-place
go=town went|aller vais vas va allons allez vont ir allé;be|fahren fährst fährt gefahren;be|p|to-town
live|habiter|wohnen;now|p|in-town
hit hit|frapper|schlagen schlägst schlägt geschlagen|p|with-bat
play=music|jouer|spielen|p|music
play=sport|jouer|spielen|p|sport
think thought|penser|glauben;now|p|that
know=fact knew|savoir sais sais sait savons savez savent saur su|\
wissen weiß weißt weiß wissen wisst wissen gewusst;now|p|that
hope|espérer|hoffen;now|p|that
say said|dire dis dis dit disons dites disent dir dit|sagen;now|p|that
cost cost|coûter|kosten;now|ocvs|price
"""

# English | French | German | tenses (p present, q past, f future); these stand first or last
TIMES = tuple(
    tuple(line.split("|"))
    for line in """yesterday|hier|gestern|q
last week|la semaine dernière|letzte Woche|q
last night|hier soir|gestern Abend|q
last year|l'année dernière|letztes Jahr|q
two days ago|il y a deux jours|vor zwei Tagen|q
tomorrow|demain|morgen|f
next week|la semaine prochaine|nächste Woche|f
tomorrow morning|demain matin|morgen früh|f
in an hour|dans une heure|in einer Stunde|f
today|aujourd'hui|heute|qf
every day|tous les jours|jeden Tag|p
every morning|tous les matins|jeden Morgen|p
in the evening|le soir|am Abend|p
in spring|au printemps|im Frühling|pf
in summer|en été|im Sommer|pf
in winter|en hiver|im Winter|pf
on Monday|lundi|am Montag|qf
on Tuesday|mardi|am Dienstag|qf
on Saturday|samedi|am Samstag|qf
on Sunday|dimanche|am Sonntag|qf
after the lesson|après le cours|nach dem Unterricht|qf
before dinner|avant le dîner|vor dem Abendessen|qf""".split("\n")
)
FREQUENCIES = (
    ("often", "souvent", "oft"), ("always", "toujours", "immer"), ("sometimes", "parfois", "manchmal"),
    ("never", "jamais", "nie"), ("rarely", "rarement", "selten"),
)  # fmt: skip
DEGREES = (("very", "très", "sehr"), ("too", "trop", "zu"), ("a little", "un peu", "ein bisschen"))
# be hungry -> avoir faim -> Hunger haben, with the German for "not"
STATES = (
    ("hungry", "faim", "Hunger", "keinen Hunger"), ("thirsty", "soif", "Durst", "keinen Durst"),
    ("afraid", "peur", "Angst", "keine Angst"), ("right", "raison", "recht", "nicht recht"),
    ("wrong", "tort", "unrecht", "nicht unrecht"),
)  # fmt: skip
MUSIC = (("the piano", "du piano", "Klavier"), ("the guitar", "de la guitare", "Gitarre"),
         ("the violin", "du violon", "Geige"), ("the flute", "de la flûte", "Flöte"))  # fmt: skip
SPORTS = (("football", "au football", "Fußball"), ("tennis", "au tennis", "Tennis"),
          ("cards", "aux cartes", "Karten"), ("chess", "aux échecs", "Schach"))  # fmt: skip
# English | French (a final "de" contracts) | German, with the dative for a place
PREPOSITIONS = {
    "in": ("in", "dans", "in"), "on": ("on", "sur", "auf"), "under": ("under", "sous", "unter"),
    "behind": ("behind", "derrière", "hinter"), "front": ("in front of", "devant", "vor"),
    "beside": ("next to", "à côté de", "neben"), "to": ("to", "à", "zu"), "with": ("with", "avec", "mit"),
    "without": ("without", "sans", "ohne"), "for": ("for", "pour", "für"), "at": ("in", "à", "in"),
    "toward": ("to", "à", "nach"),
}  # fmt: skip

MEN = "Paul Lukas Martin David Simon Thomas Daniel Felix Oscar Victor Leon Max".split()
WOMEN = "Anna Marie Julia Clara Sophie Emma Laura Nina Lea Eva Alice Olga".split()
NAME_STARTS = "Ba Bel Bran Cal Co Da Del Dor El Er Fa Fen Ga Gar Il Ka Kel La Lo Mar Mel Mi Nor Or Pa Pel Ra Ro Sa \
Sel Ta Tor Ul Va Vel Vi Wen Zo".split()
NAME_MIDDLES = "ba bri da de di do fa ga gi ka la le li lo ma mi mo na ni no ra ri ro sa si ta ti va vi".split()
MEN_ENDS = "ldo mon nus ric rek sto tan ver".split()
WOMEN_ENDS = "lia mina nda nelle ra rina ssa vette".split()
TOWN_ENDS = "burg dorf mont ville stad port".split()
SURNAME_ENDS = "ck ckert ler mann rdt skov tz wen".split()

EN_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
seventeen eighteen nineteen".split()
EN_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
FR_NUMBERS = "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept \
dix-huit dix-neuf".split()
FR_TENS = "_ _ vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt".split()
DE_NUMBERS = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn \
siebzehn achtzehn neunzehn".split()
DE_TENS = "_ _ zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
