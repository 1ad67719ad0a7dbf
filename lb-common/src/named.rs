//! Enums whose values have names.

/// Defines an enum with a stable name beside each variant.
#[macro_export]
macro_rules! named_enum {
    ($(#[$about:meta])* $vis:vis enum $type:ident {
        $($(#[$meaning:meta])* $variant:ident = $name:literal,)+
    }) => {
        $(#[$about])*
        $vis enum $type {
            $($(#[$meaning])* $variant,)+
        }

        impl $type {
            /// Every value, in order.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The stable name in configurations, counters and logs.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}
