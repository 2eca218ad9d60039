"""The feature explorer: what a model's features do on texts of your own, as pages, as a widget, as a web app.

`feature_page` writes about one feature, `explore_feature` shows it in a notebook. `Explorer` loads a model and its SAEs
and answers with tables and HTML; `search` finds features, `steer` writes text under one; `explore` is the widget with
all of it, `explorer.app` the same in a browser.
"""

from prism.explorer.pages import explore_feature, feature_page
from prism.explorer.search import WAYS, Found, by_category, by_concept, by_number, by_token, categories, search
from prism.explorer.session import ERRORS, MAX_CHARACTERS, RARE, Explorer, Reading
from prism.explorer.steer import HOWS, MAX_NEW_TOKENS, MAX_STRENGTH, Continuation, steer
from prism.explorer.widget import ExplorerWidget, explore
