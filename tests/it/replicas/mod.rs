//! Three replicas on one database, and failures of the replicas, the database and the network,
//! under a load of providers that repeat requests only as far as they promise.
//!
//! After each failure: no acknowledged event is lost, order per key holds, and no event is
//! delivered twice, except for the deliveries that an affected replica had claimed, and those that
//! had just ended when the primary was lost. Each test prints a line of figures: run `cargo test
//! --test it replicas -- --nocapture`.

mod cluster;
mod load;
pub(crate) mod namespace;
mod proof;
mod sink;

use std::{sync::Arc, time::Instant};

use self::{
    cluster::{Cluster, IN_HAND, REPLICAS, Version},
    load::Load,
    namespace::Island,
};
use crate::harness::eventually;

/// Waits until `count` more events of `load` are acknowledged.
fn acknowledged(load: &Load, count: usize) {
    let since = Instant::now();
    eventually("events are acknowledged", || {
        load.log().answered(200, since) >= count
    });
}

/// Waits until a few more requests of `load` are refused.
fn refused(load: &Load) {
    let since = Instant::now();
    eventually("events are refused", || {
        load.log().answered(503, since) >= 10
    });
}

/// A running load, with unanswered deliveries of the first replica. Returns their number too.
fn with_deliveries_under_way(cluster: &Cluster) -> (Load, usize) {
    let load = cluster.load(0);
    acknowledged(&load, 200);
    cluster.sink.ignore(0);
    eventually("deliveries are under way", || {
        cluster.sink.in_flight(0) >= 3
    });
    (load, cluster.sink.in_flight(0))
}

#[test]
fn a_replica_that_is_killed_is_replaced_by_the_others() {
    let mut cluster = Cluster::start();
    let (load, under_way) = with_deliveries_under_way(&cluster);
    let failed_at = Instant::now();
    cluster.replica(0).kill();
    cluster.until_taken_over(&load, failed_at);
    cluster.sink.attend();
    cluster.start_again(0);
    acknowledged(&load, 200);
    let figures = cluster.prove(load, failed_at);
    figures.show("kill -9 of a replica");
    assert!((under_way..=IN_HAND).contains(&figures.duplicates));
    assert!(figures.unanswered.keys().all(|replica| *replica == 0));
}

#[test]
fn a_replica_that_is_frozen_past_its_lease_changes_nothing_when_it_thaws() {
    let mut cluster = Cluster::start();
    let (load, under_way) = with_deliveries_under_way(&cluster);
    let failed_at = Instant::now();
    cluster.replica(0).signal("STOP");
    cluster.until_taken_over(&load, failed_at);
    // Its settlements come after the settlements of the replicas that took over its deliveries.
    cluster.sink.attend();
    cluster.replica(0).signal("CONT");
    acknowledged(&load, 200);
    let figures = cluster.prove(load, failed_at);
    figures.show("freeze of a replica past its lease, then thaw");
    assert!((under_way..=IN_HAND).contains(&figures.duplicates));
    assert!(figures.unanswered.keys().all(|replica| *replica == 0));
}

#[test]
fn a_replica_whose_network_is_cut_is_replaced_by_the_others() {
    let island = Arc::new(Island::new());
    let cluster = Cluster::start_with_an_island(&island);
    let (load, under_way) = with_deliveries_under_way(&cluster);
    let failed_at = Instant::now();
    island.cut();
    cluster.until_taken_over(&load, failed_at);
    cluster.sink.attend();
    island.mend();
    acknowledged(&load, 200);
    let figures = cluster.prove(load, failed_at);
    figures.show("cut of a replica's network, then mended");
    assert!((under_way..=IN_HAND).contains(&figures.duplicates));
    assert!(figures.unanswered.keys().all(|replica| *replica == 0));
}

#[test]
fn a_standby_that_is_promoted_has_everything() {
    let mut cluster = Cluster::start();
    let load = cluster.load(0);
    acknowledged(&load, 300);
    let failed_at = Instant::now();
    cluster.primary.server().kill();
    refused(&load);
    cluster.standby.promote();
    acknowledged(&load, 200);
    let figures = cluster.prove(load, failed_at);
    figures.show("kill -9 of the primary, promotion of the standby");
    assert!(figures.duplicates <= REPLICAS * IN_HAND + figures.just_ended);
    assert!(figures.unanswered.is_empty());
}

#[test]
fn a_database_whose_disk_is_full_refuses_until_there_is_room() {
    let (mut cluster, disk) = Cluster::start_on_a_disk(160);
    let load = cluster.load(20_000);
    eventually("the disk is full", || {
        let said = cluster.primary.server().log();
        said.contains("No space left on device")
    });
    refused(&load);
    disk.grow(2000);
    let failed_at = Instant::now();
    // A server that could not write its log has ended. A server that could not write a table
    // continues.
    if !cluster.primary.server().is_running() {
        cluster.restart_primary();
    }
    acknowledged(&load, 100);
    let figures = cluster.prove(load, failed_at);
    figures.show("full disk of the database, then room");
    assert!(figures.duplicates <= REPLICAS * IN_HAND + figures.just_ended);
    assert!(figures.unanswered.is_empty());
}

#[test]
fn everything_can_be_restarted_one_after_the_other() {
    let mut cluster = Cluster::start_as(Version::Previous);
    for (next, scenario) in [
        (Version::Current, "rolling upgrade of the replicas"),
        (Version::Previous, "rolling return to the version before"),
    ] {
        let load = cluster.load(0);
        acknowledged(&load, 100);
        let began_at = Instant::now();
        for number in 0..REPLICAS {
            cluster.stop(number, next);
            acknowledged(&load, 50);
            cluster.start_again(number);
            acknowledged(&load, 50);
        }
        let figures = cluster.prove(load, began_at);
        figures.show(scenario);
        assert_eq!((figures.duplicates, figures.refused), (0, 0));
        assert!(figures.unanswered.is_empty());
    }

    let load = cluster.load(0);
    acknowledged(&load, 100);
    let failed_at = Instant::now();
    cluster.primary.server().stop("INT");
    refused(&load);
    cluster.restart_primary();
    acknowledged(&load, 200);
    let figures = cluster.prove(load, failed_at);
    figures.show("restart of the database");
    assert!(figures.duplicates <= REPLICAS * IN_HAND);
    assert!(figures.unanswered.is_empty());
}
