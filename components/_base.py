"""The one decorator of all components: our image, nothing installed at run time.

Only the standard library and kfp may be imported at module level here and in every component:
the heavy imports stand in the bodies, so that compiling a pipeline never loads torch.
"""

import functools

from kfp import dsl

from pipestill import __version__

IMAGE = f"pipestill/cpu:{__version__}"

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
