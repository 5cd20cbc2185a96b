"""Why Slurm refuses a job, in the words of what was asked and what there is."""

from __future__ import annotations

from collections.abc import Iterator

from hsadml_dist.errors import ClusterError, did_you_mean
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.site import SlurmSite


def explain_refusal(request: JobRequest, site: SlurmSite | None, refusal: ClusterError) -> ClusterError:
    """Return Slurm's refusal as one line that begins with what of the request cannot be, where that shows.

    Args:
        request: What was asked for.
        site: The controller's settings; None: it told none.
        refusal: What sbatch said.
    """
    reason = None if site is None else next(_reasons(request, site, str(refusal)), None)
    return refusal if reason is None else ClusterError(f"{reason} ({refusal})")


def _reasons(request: JobRequest, site: SlurmSite, said: str) -> Iterator[str]:
    name, names = request.partition, list(site.partitions)
    if name is not None and names and name not in names:
        known = ", ".join(names)
        yield f"--partition {name}: this cluster has no such partition{did_you_mean(name, names)}; its partitions: {known}"
    place = site.partition(name)
    if place is not None and request.nodes > place.nodes:
        yield f"--nodes {request.nodes}: partition {place.name} has {place.nodes}"
    if "account" in said.lower():
        given = f"--account {request.account}: may" if request.account else "no --account is given; without one you may"
        where = place.name if place else name
        yield f"{given} not submit to partition {where}; `sacctmgr show user $USER -s` lists yours"
